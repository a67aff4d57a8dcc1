"""Token prediction: no gradient from patches that a query must not see, and equal to its naive forms."""

import math

import pytest
import torch

from mapet.method.encoder import Encoder
from mapet.method.order import uniform
from mapet.method.pattern import mapet, mim, reveal
from mapet.method.predict import TokenPrediction
from method_oracle import GROUPS, NAMED, PATTERNS, cases, naive_logits, shaken, times

PATCH = 2


def tiny(pattern, vocabulary=11, grid=None, **changes):
    grid = grid or (3, pattern.length // 3)
    settings = {"embed_dim": 16, "depth": 3, "num_heads": 2, "init_values": 0.5, **changes}
    return TokenPrediction(Encoder((PATCH * grid[0], PATCH * grid[1]), PATCH, **settings), pattern, vocabulary)


def batch(model, size, seed=0):
    """Images, tokens and orders."""
    generator, encoder = torch.Generator().manual_seed(seed), model.encoder
    dtype = model.mask_token.dtype
    images = torch.randn(size, encoder.in_chans, *encoder.img_size, generator=generator, dtype=dtype)
    tokens = torch.randint(model.vocabulary, (size, encoder.length), generator=generator)
    return images, tokens, uniform(encoder.grid, 0, seed, 0, torch.arange(size))


@pytest.mark.parametrize("depth", [2, 4])
@pytest.mark.parametrize(("length", "groups", "fill"), cases(24, seed=1, largest=12))
def test_query_depends_on_exactly_the_earlier_patches(length, groups, fill, depth):
    """One copy of the image per query; only the k-th prediction of copy k is differentiated."""
    model = shaken(tiny(reveal(length, groups, fill), grid=(1, length), depth=depth).double())
    images, _, order = batch(model, 1, seed=length)
    count = sum(groups)
    images = images.expand(count, -1, -1, -1).clone().requires_grad_()
    queries = torch.arange(count)
    weights = torch.randn(count, model.vocabulary, dtype=torch.float64)
    (model.logits(images, order.expand(count, -1))[queries, queries] * weights).sum().backward()
    influence = images.grad.abs().unfold(3, PATCH, PATCH).sum((1, 2, 4))  # (queries, patches)
    time = torch.tensor(times(length, groups))[1:]
    earlier = time[None, :] < time[-count:, None]
    influence = influence[:, order[0, 1:] - 1]
    assert (influence[~earlier] == 0).all()
    assert (influence[earlier] > 1e-9).all()


@pytest.mark.parametrize("name", PATTERNS)
def test_sliced_equals_naive_in_logits_and_gradients(name):
    model = shaken(tiny(PATTERNS[name], global_pool="token").double())
    images, _, order = batch(model, 3)
    ours, naive = model.logits(images, order), naive_logits(model, images, order, *GROUPS[name])
    torch.testing.assert_close(ours, naive, atol=1e-9, rtol=0)
    assert ours.std() > 0.1
    direction = torch.randn(ours.shape, dtype=torch.float64) / ours.numel() ** 0.5
    parameters = dict(model.named_parameters())
    found, expected = (torch.autograd.grad((logits * direction).sum(), parameters.values()) for logits in (ours, naive))
    for parameter, mine, theirs in zip(parameters, found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=0, msg=lambda text, name=parameter: f"{name}: {text}")
    single = model.float().logits(images.float(), order)
    torch.testing.assert_close(single.double(), ours, atol=1e-4, rtol=1e-4)


def test_mim_is_a_masked_vit_of_timm():
    """BEiT: mask token instead of masked patches, positions added, every row reads every row."""
    from timm.models.vision_transformer import VisionTransformer

    model = shaken(tiny(mim(12, 8)))
    images, _, order = batch(model, 4)
    theirs = VisionTransformer(
        img_size=model.encoder.img_size,
        patch_size=PATCH,
        embed_dim=16,
        depth=3,
        num_heads=2,
        init_values=0.5,
        num_classes=0,
    )
    theirs.load_state_dict(model.encoder.state_dict())
    rows = theirs.patch_embed(images)
    is_masked = torch.zeros(4, 12, 1, dtype=torch.bool).scatter_(1, order[:, 5:, None] - 1, True)
    rows = torch.where(is_masked, model.mask_token, rows)
    rows = torch.cat([theirs.cls_token.expand(4, -1, -1), rows], dim=1) + theirs.pos_embed
    logits = model.head(theirs.norm(theirs.blocks(rows)))
    expected = torch.stack([logits[image, order[image, 5:]] for image in range(4)])
    torch.testing.assert_close(model.logits(images, order), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PATTERNS)
def test_loss_and_accuracy_by_hand(name):
    model = shaken(tiny(PATTERNS[name], vocabulary=3))
    images, tokens, order = batch(model, 5)
    metrics = model(images, tokens, order)
    logits = model.logits(images, order).double().detach()
    losses, hits = [], []
    for image in range(5):
        for k, position in enumerate(order[image, model.pattern.context :].tolist()):
            scores, token = logits[image, k].exp(), int(tokens[image, position - 1])
            losses.append(-math.log(scores[token] / scores.sum()))
            hits.append(int(scores.argmax()) == token)
    assert metrics["loss"].item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert metrics["accuracy"].item() == pytest.approx(sum(hits) / len(hits))
    assert metrics["loss"].shape == metrics["accuracy"].shape == ()
    assert not metrics["accuracy"].requires_grad


@pytest.mark.parametrize("name", PATTERNS)
def test_tokens_of_context_patches_are_never_used(name):
    """Changing tokens of context patches has no effect; changing a predicted one changes the loss."""
    model = shaken(tiny(PATTERNS[name]))
    images, tokens, order = batch(model, 2)
    loss = model(images, tokens, order)["loss"]
    given = order[:, 1 : model.pattern.context] - 1
    other = tokens.scatter(1, given, (tokens.gather(1, given) + 1) % 11)
    assert torch.equal(model(images, other, order)["loss"], loss)
    last = order[:, -1:] - 1
    other = tokens.scatter(1, last, (tokens.gather(1, last) + 1) % 11)
    assert not torch.equal(model(images, other, order)["loss"], loss)


def spread(tensor, std):
    """Mean and standard deviation lie within five sampling errors of (0, std)."""
    count = tensor.numel()
    return abs(tensor.mean()) < 5 * std / count**0.5 and abs(tensor.std() - std) < 5 * std / (2 * count) ** 0.5


def test_initialisation_is_the_published_one():
    torch.manual_seed(0)
    model = TokenPrediction(Encoder(64, 8, embed_dim=96, depth=2, num_heads=3, init_values=0.1), mapet(64, 48), 50)
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if name.endswith(("proj.weight", "proj.bias")) and "patch_embed" in name:
            assert parameter.abs().max() <= 1 / (3 * 8 * 8) ** 0.5, name  # torch's default for a convolution
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        elif "gamma" in name:
            assert (parameter == 0.1).all(), name
        elif name.endswith("cls_token"):
            assert 0 < parameter.abs().max() < 1e-5
        else:
            assert name.endswith(("weight", "mask_token", "pos_embed")), name
            assert spread(parameter, 0.02), name


@pytest.mark.parametrize("name", NAMED)
def test_stochastic_depth_follows_each_images_seed(name):
    """Any split of the batch drops the same branches; evaluation drops nothing."""
    model = shaken(tiny(NAMED[name](12, 8), drop_path_rate=0.5)).train()
    images, _, order = batch(model, 16)
    seed = torch.arange(16)
    with torch.no_grad():
        together = model.logits(images, order, seed)
        apart = torch.cat([model.logits(images[k : k + 1], order[k : k + 1], seed[k : k + 1]) for k in range(16)])
        torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
        plain = model.eval().logits(images, order)
        assert not torch.allclose(together, plain, atol=1e-2)
        torch.testing.assert_close(model.logits(images, order, seed), plain, atol=0, rtol=0)


@pytest.mark.parametrize("name", NAMED)
def test_result_does_not_depend_on_the_batch(name):
    model = shaken(tiny(NAMED[name](12, 8)))
    images, _, order = batch(model, 3)
    alone = torch.cat([model.logits(images[k : k + 1], order[k : k + 1]) for k in range(3)])
    torch.testing.assert_close(model.logits(images, order), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PATTERNS)
def test_two_tokens_one_image(name):
    model = tiny(PATTERNS[name], vocabulary=2)
    images, tokens, order = batch(model, 1)
    loss = model(images, tokens, order)["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2), abs=0.05)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", NAMED)
def test_bfloat16_autocast(name):
    model = tiny(NAMED[name](12, 8))
    images, tokens, order = batch(model, 4)
    exact = model(images, tokens, order)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(images, tokens, order)["loss"]
    rough.backward()
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.02)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", NAMED)
def test_sixty_steps_memorise_eight_images(name):
    torch.manual_seed(0)
    model = tiny(NAMED[name](9, 6), vocabulary=8, embed_dim=32, depth=2)
    images, tokens, order = batch(model, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        metrics = model(images, tokens, order)
        metrics["loss"].backward()
        optimizer.step()
    assert metrics["loss"] < 0.5 * math.log(8)
    assert metrics["accuracy"] > 2 / 8


def test_initial_loss_is_that_of_a_uniform_guess():
    model = tiny(mapet(12, 8), vocabulary=1000)
    images, tokens, order = batch(model, 8)
    assert model(images, tokens, order)["loss"].item() == pytest.approx(math.log(1000), rel=0.01)


def test_encoder_and_pattern_of_different_lengths():
    with pytest.raises(ValueError, match="12 patches"):
        TokenPrediction(Encoder((6, 8), 2, embed_dim=16, depth=1, num_heads=2), mapet(11, 3), 5)


@pytest.mark.parametrize("name", PATTERNS)
def test_the_weights_that_are_saved_are_the_parameters(name):
    """What follows from the pattern is not in a checkpoint, which another pattern may read."""
    model = tiny(PATTERNS[name])
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()
