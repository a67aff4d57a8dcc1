"""Training a VQ-KD: parity with one published training pass, and what the codebook does over steps and processes."""

import threading

import pytest
import torch
from torch.nn.functional import normalize

from golden_numbers import Golden
from mapet.tokenizers.quantizer import draw_features, ema_update, sum_by_code
from mapet.tokenizers.vqkd import VQKD
from mapet.tokenizers.vqkd_train import VQKDTraining
from mapet.utils.errors import MapetError

OUTPUT, LOSS = 2e-5, 1e-5  # float32 on a CPU


@pytest.fixture
def golden():
    return Golden("vqkd")


def published(golden, **options):
    sizes = {"image_size": 48, "patch_size": 8, "heads": 4, "decoder_heads": 2}
    return VQKDTraining.from_beit2(golden.weights, **sizes, **options)


def small(codes=24, **options):
    """A training of 8 × 8 images with 4 patches each, towards 6 numbers a patch."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = VQKD(image_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2, codes=codes, code_dim=4)
        return VQKDTraining(network, width=6, decoder_dim=16, decoder_depth=1, decoder_heads=2, **options)


def batch(sample_images=32, seed=0):
    chance = torch.Generator().manual_seed(seed)
    images = torch.rand(sample_images, 3, 8, 8, generator=chance)
    target = torch.randn(sample_images, 4, 6, generator=chance)
    return {"images": images, "target": target, "index": torch.arange(sample_images)}


def inputs(golden):
    """The published images, and as the teacher's features what the published decoder says of them."""
    return {"images": golden["images"], "target": golden["decoded"], "index": torch.arange(len(golden["images"]))}


def state(training):
    return {name: tensor.clone() for name, tensor in training.state_dict().items()}


def test_decoder_and_loss_are_the_published_ones(golden):
    training = published(golden).eval()
    with torch.no_grad():
        decoded = training.decode(golden["quantized"].flatten(2).transpose(1, 2))
        figures = training(**inputs(golden))
    torch.testing.assert_close(decoded, golden["decoded"], atol=OUTPUT, rtol=0)
    torch.testing.assert_close(figures["commitment"], golden["commitment_loss"], atol=LOSS, rtol=0)
    torch.testing.assert_close(figures["cosine"], torch.tensor(1.0), atol=LOSS, rtol=0)
    torch.testing.assert_close(figures["loss"], golden["commitment_loss"], atol=LOSS, rtol=0)


def test_one_training_pass_moves_codes_and_usage_as_published(golden):
    training = published(golden, restart=0.0).train()
    before = training.network.codes.clone()
    training(**inputs(golden))
    training.update()
    torch.testing.assert_close(training.network.codes, golden["train_codebook"], atol=OUTPUT, rtol=0)
    torch.testing.assert_close(training.usage, golden["train_usage"], atol=OUTPUT, rtol=0)
    assert (training.network.codes - before).abs().max() > 1e-3


def test_nothing_moves_in_evaluation_mode(golden):
    training = published(golden).eval()
    before = state(training)
    training(**inputs(golden))
    training.update()
    assert all(torch.equal(tensor, before[name]) for name, tensor in training.state_dict().items())


def test_the_gradient_passes_straight_through():
    """The encoder's gradient is that of the loss with the chosen codes put in the features' place."""
    training = small(commitment=0.0)
    data = batch(3)
    unit = training.network.unit(data["images"]).detach()
    chosen = training.network.codes[training.network.nearest(unit)[0]].clone().requires_grad_()
    cosine = torch.cosine_similarity(training.decode(chosen), data["target"], dim=-1).mean()
    (expected,) = torch.autograd.grad(1 - cosine, chosen)
    features = training.network.features(data["images"])
    (shortcut,) = torch.autograd.grad(
        normalize(features, dim=-1), training.network.encode_task_layer[2].weight, expected, retain_graph=True
    )
    loss = training(**data)["loss"]
    (found,) = torch.autograd.grad(loss, training.network.encode_task_layer[2].weight)
    torch.testing.assert_close(found, shortcut, atol=1e-7, rtol=1e-4)
    assert found.abs().max() > 1e-5


def test_commitment_pulls_features_to_their_codes():
    with_, without = (small(commitment=weight)(**batch()) for weight in (2.0, 0.0))
    torch.testing.assert_close(with_["loss"] - without["loss"], 2 * with_["commitment"])
    torch.testing.assert_close(without["loss"], 1 - without["cosine"])


def pieces(data, *places):
    return [
        dict(zip(data, values, strict=True)) for values in zip(*(t.split(places) for t in data.values()), strict=True)
    ]


def test_parts_of_a_batch_move_the_codes_like_the_whole():
    whole, parts = small(restart=0.9), small(restart=0.9)
    for step in range(4):
        data = batch(seed=step)
        whole(**data)
        whole.update()
        for piece in pieces(data, 5, 20, 7):
            parts(**piece)
        parts.update()
        torch.testing.assert_close(parts.network.codes, whole.network.codes, atol=1e-5, rtol=0)
        torch.testing.assert_close(parts.usage, whole.usage)


class Processes:
    """A ``reduce`` among threads that stand for processes."""

    def __init__(self, count):
        self.barrier, self.given = threading.Barrier(count, timeout=20), [None] * count

    def reduce(self, rank):
        def together(tensor, operation):
            self.given[rank] = tensor
            self.barrier.wait()
            stacked = torch.stack(self.given)
            self.barrier.wait()
            return stacked.sum(0) if operation == "sum" else stacked.amin(0)

        return together


def test_processes_move_the_codes_like_one():
    """Three unequal shares, four steps with many restarts: every process ends with the codes of a single one."""
    processes = Processes(3)
    whole, shares = small(restart=0.9), [small(restart=0.9, reduce=processes.reduce(rank)) for rank in range(3)]
    first = whole.network.codes.clone()

    def train(rank):
        for step in range(4):
            shares[rank](**pieces(batch(seed=step), 9, 20, 3)[rank])
            shares[rank].update()

    threads = [threading.Thread(target=train, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for step in range(4):
        whole(**batch(seed=step))
        whole.update()
    for thread in threads:
        thread.join()
    assert ((whole.network.codes - first).abs().amax(dim=1) > 0.1).sum() > 5
    for share in shares:
        torch.testing.assert_close(share.network.codes, whole.network.codes, atol=1e-5, rtol=0)
        torch.testing.assert_close(share.usage, whole.usage)


def follow(restart, codes=32, steps=60):
    """How many codes are used in the end, where all but one begin on the far side of all features."""
    training = small(codes, restart=restart, decay=0.9)
    side = torch.tensor([1.0, 0, 0, 0])
    training.network.codes.copy_(normalize(0.3 * training.network.codes - side))
    training.network.codes[7] = side
    chance = torch.Generator().manual_seed(1)
    for _ in range(steps + 1):
        unit = normalize(side + 0.3 * torch.randn(64, 4, 4, generator=chance), dim=-1)
        tokens, _ = training.network.nearest(unit)
        training._seen.append((unit, tokens, torch.arange(64)))
        training.update()
    return len(tokens.unique())


def test_a_collapsed_codebook_is_revived_by_restarts():
    assert follow(restart=0.0) < 8
    assert follow(restart=0.05) > 28


def test_a_dead_code_comes_back_where_a_feature_is():
    training = small(restart=0.5).train()
    training.usage[3] = 0
    data = batch()
    unit = training.network.unit(data["images"]).flatten(0, 1)
    training(**data)
    training.update()
    nearest = (unit @ training.network.codes[3]).max()
    torch.testing.assert_close(nearest, torch.tensor(1.0), atol=1e-6, rtol=0)
    assert training.usage[3] == pytest.approx(float(training.usage.mean()), rel=0.2)  # twice the half


def test_drawn_features_are_different_ones_of_those_shown():
    unit = normalize(torch.randn(400, 4, generator=torch.Generator().manual_seed(2)))
    keys = torch.randperm(400, generator=torch.Generator().manual_seed(3)) * 7919
    found, there = draw_features(unit, keys, 30, lambda tensor, operation: tensor)
    rows = (found[there][:, None] == unit).all(dim=2).nonzero()[:, 1]
    assert len(rows.unique()) == int(there.sum()) > 25
    again, _ = draw_features(unit.flip(0), keys.flip(0), 30, lambda tensor, operation: tensor)
    assert torch.equal(found, again)


def test_a_moved_code_is_a_unit_vector_between_old_and_mean():
    unit = normalize(torch.tensor([[1.0, 0], [0, 1], [0, 1]]))
    codes = torch.tensor([[1.0, 0], [-1.0, 0]])
    table = sum_by_code(unit, torch.tensor([0, 0, 0]), 2)
    assert table.tolist() == [[1, 2, 3], [0, 0, 0]]
    fresh, usage = ema_update(codes, torch.tensor([10.0, 10.0]), table, 0.9)
    mean = normalize(torch.tensor([1.0, 2.0]), dim=0)
    torch.testing.assert_close(fresh[0], normalize(0.9 * codes[0] + 0.1 * mean, dim=0))
    torch.testing.assert_close(fresh[1], codes[1])
    torch.testing.assert_close(usage, torch.tensor([9.3, 9.0]))


def test_the_start_is_a_better_codebook_than_chance():
    training, data = small().eval(), batch(64)
    before = training(**data)["commitment"]
    training.start(data["images"].split(20))
    after = training(**data)
    assert after["commitment"] < before / 3
    assert after["used"] == 24
    assert int(training.usage.sum()) == 64 * 4
    with pytest.raises(MapetError, match="24 centroids need at least 24 vectors, got 20"):
        training.start([data["images"][:5]])


def test_training_lowers_the_loss_and_uses_the_codes(images):
    """Real images, whose own pixels stand for a teacher: far better than untrained, and most codes are used."""
    from mapet.data.augment import to_float
    from mapet.data.dataset import open_dataset
    from mapet.data.loader import in_memory
    from mapet.data.unreadable import UnreadableImages
    from mapet.utils.view import CenterCropResize

    source = open_dataset(str(images))
    images = to_float(in_memory(source, [CenterCropResize((8, 8))], bad=UnreadableImages(len(source)))[0][0])
    target = torch.nn.functional.unfold(images, 4, stride=4).transpose(1, 2) - 0.5
    data = {"images": images, "target": target[:, :, ::8], "index": torch.arange(len(images))}
    training = small(decay=0.9)
    random = training.eval()(**data)["loss"].item()
    training.start([images])
    started = training(**data)["loss"].item()
    optimizer = torch.optim.AdamW(training.parameters(), lr=1e-3)
    training.train()
    for _ in range(60):
        optimizer.zero_grad()
        training(**data)["loss"].backward()
        optimizer.step()
        training.update()
    reached = training.eval()(**data)
    assert reached["loss"] < 0.5 * min(random, started)
    tokenizer = training.tokenizer()
    tokens = tokenizer.encode(images)
    assert len(tokens.unique()) > 12
    assert torch.equal(tokens, training.network.encode(images))
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
