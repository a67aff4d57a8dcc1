"""Pooling by hand, an untouched encoder, and effective ranks that are known."""

import pytest
import torch
from torch import nn

from mapet.evals.features import POOLS, UNPOOLED, effective_rank, features, pooled
from mapet.method.encoder import Encoder
from mapet.utils.errors import MapetError


def encoder(**settings):
    torch.manual_seed(0)
    return Encoder(8, 4, embed_dim=8, depth=2, num_heads=2, **settings)


@pytest.fixture
def batches():
    images = torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 3, -1, 5, 6])
    return [(images[:4], labels[:4]), (images[4:], labels[4:])]


@pytest.mark.parametrize("global_pool", ["token", "avg"])
def test_pools(batches, global_pool):
    model = encoder(global_pool=global_pool)
    nn.init.normal_(model.norm.weight if global_pool == "token" else model.fc_norm.weight)
    rows = model(torch.cat([images for images, _ in batches]))
    expected = {"avg": model.fc_norm(rows[:, 1:].mean(1)), "token": model.fc_norm(rows[:, 0])}
    expected["avg+token"] = torch.cat([expected["avg"], expected["token"]], dim=1)
    assert expected.keys() == POOLS.keys()
    for pool, vectors in expected.items():
        found, labels = features(model, batches, pool=pool)
        torch.testing.assert_close(found, vectors)
        assert not found.requires_grad
        assert labels.tolist() == [0, 1, 2, 3, -1, 5, 6]


class Last(nn.Module):
    """An encoder of another make: rows that three blocks change, and no method of ours."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.blocks = nn.Conv2d(3, 8, 4, 4), nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))

    def forward(self, images):
        patches = self.stem(images).flatten(2).transpose(1, 2)
        return self.blocks(torch.cat([patches[:, :1], patches], dim=1))


@pytest.mark.parametrize("make", [encoder, Last])
def test_layers_are_those_of_the_encoder_cut_short(batches, make):
    model = make()
    images = torch.cat([images for images, _ in batches])
    expected = []
    for depth in range(1, len(model.blocks) + 1):
        short = make()
        short.blocks, short.norm = short.blocks[:depth], nn.Identity()
        rows = short.eval()(images)
        expected.append(torch.cat([rows[:, 0], rows[:, 1:].mean(dim=1)], dim=1))
    found, labels = features(model, batches, pool="layers")
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), torch.stack(expected, dim=1), atol=2e-3, rtol=1e-3)
    assert labels.tolist() == [0, 1, 2, 3, -1, 5, 6]
    assert not any(block._forward_hooks for block in model.blocks)


def test_patches(batches):
    model = encoder()
    expected = model(torch.cat([images for images, _ in batches]))[:, 1:]
    found, _ = features(model, batches, pool="patches")
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("pool", [*POOLS, *UNPOOLED])
def test_any_batch_size(batches, pool):
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    whole, _ = features(encoder(), batches, pool=pool)
    for size in (1, 3, 7):
        found, known = features(encoder(), zip(images.split(size), labels.split(size), strict=True), pool=pool)
        torch.testing.assert_close(found, whole, atol=2e-3 if pool in UNPOOLED else 1e-5, rtol=0)
        assert torch.equal(known, labels)


def test_layers_need_blocks(batches):
    class Blockless(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

    with pytest.raises(MapetError, match="Blockless has no blocks"):
        features(Blockless(), batches, pool="layers")


def test_encoder_and_global_seed_are_unchanged(batches):
    model = encoder(drop_path_rate=0.5)
    model.blocks[1].eval()  # a part with a mode of its own
    modes = [part.training for part in model.modules()]
    state = torch.get_rng_state()
    first, _ = features(model, batches)
    second, _ = features(model, batches)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in model.modules()] == modes
    assert True in modes
    assert False in modes


def test_modes_come_back_after_an_error():
    model = encoder()
    with pytest.raises(RuntimeError):
        features(model, [(torch.zeros(1, 5, 8, 8), torch.zeros(1))])
    assert all(part.training for part in model.modules())


def test_low_precision_is_close_and_returned_as_float32(batches):
    full, _ = features(encoder(), batches)
    low, _ = features(encoder(), batches, precision=torch.bfloat16)
    assert low.dtype == torch.float32
    assert not torch.equal(low, full)
    torch.testing.assert_close(low, full, atol=0.1, rtol=0)


def test_mistakes(batches):
    with pytest.raises(MapetError, match='Did you mean "token"'):
        features(encoder(), batches, pool="tokens")
    with pytest.raises(MapetError, match="no images"):
        features(encoder(), [])


def with_singular_values(values, count=40):
    """A centred matrix with these singular values: orthonormal columns, all orthogonal to the constant one."""
    noise = torch.randn(count, len(values) + 1, generator=torch.Generator().manual_seed(0)).double()
    noise[:, 0] = 1
    return torch.linalg.qr(noise).Q[:, 1:] * torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_effective_rank_counts_equal_directions(rank):
    assert effective_rank(with_singular_values([2.0] * rank + [0.0] * (8 - rank))) == pytest.approx(rank, abs=1e-4)


def test_effective_rank_by_hand():
    # shares 1/2, 1/4, 1/4: entropy = 1/2 ln 2 + 2 · 1/4 ln 4 = 3/2 ln 2
    assert effective_rank(with_singular_values([2.0, 1.0, 1.0])) == pytest.approx(2**1.5, abs=1e-6)


def test_effective_rank_ignores_scale_shift_and_rotation():
    vectors = with_singular_values([5.0, 3.0, 1.0, 0.5])
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(2)).double()).Q
    expected = effective_rank(vectors)
    assert effective_rank(100 * vectors @ rotation + 7) == pytest.approx(expected, abs=1e-4)


def test_effective_rank_of_a_collapsed_encoder():
    assert effective_rank(torch.full((30, 5), 0.3)) == 0
    assert effective_rank(torch.zeros(30, 5)) == 0
    assert effective_rank(torch.randn(1, 5)) == 0


@torch.no_grad()
def test_a_layer_s_rows_are_those_of_its_block():
    model, images = encoder().eval(), torch.randn(2, 3, 8, 8)
    rows = model.embed(images) + model.pos_embed
    for depth, block in enumerate(model.blocks, 1):
        rows = block(rows)
        torch.testing.assert_close(pooled(model, images, "patches", depth), rows[:, 1:])
        torch.testing.assert_close(pooled(model, images, "token", depth), rows[:, 0])  # without the norm
