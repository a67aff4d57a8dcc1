"""BEiT v2's second prediction equals its naive form under every pattern, uses CLS, and does not leak."""

import pytest
import torch

from mapet.method.cls_aggregation import ClassAggregation
from mapet.method.encoder import Encoder
from mapet.method.pattern import mim, reveal
from mapet.method.predict import TokenPrediction
from method_oracle import PATTERNS, cases, drawn, plain_block, shaken, times

PATCH = 2


def tiny(pattern, grid=None, layer=2, extra=2, **changes):
    grid = grid or (3, pattern.length // 3)
    settings = {"embed_dim": 16, "depth": 4, "num_heads": 2, "init_values": 0.5, **changes}
    encoder = Encoder((PATCH * grid[0], PATCH * grid[1]), PATCH, **settings)
    return ClassAggregation(encoder, pattern, 11, layer=layer, extra=extra)


def both(model, images, order, seed=None):
    """Logits of the encoder's and of the second prediction."""
    return tuple(model.head(states) for states in model.both_states(images, order, seed))


def naive_both(model, images, order):
    """Every row through every block with the full mask; CLS replaced in a loop."""
    pattern, encoder = model.pattern, model.encoder
    rows, states = model.rows(images, order), []
    for block in encoder.blocks:
        rows = plain_block(block, rows, pattern.visible)
        states.append(rows)
    mixed = states[model.layer - 1].clone()
    for row, (index, is_masked) in enumerate(zip(pattern.position_in_order, pattern.is_masked, strict=True)):
        if index == 0 and not is_masked:
            mixed[:, row] = rows[:, row]
    for block in model.cls_blocks:
        mixed = plain_block(block, mixed, pattern.visible)
    return tuple(model.head(encoder.norm(state[:, pattern.predict])) for state in (rows, mixed))


@pytest.mark.parametrize(("layer", "extra"), [(2, 2), (1, 2), (3, 1), (1, 3)])
@pytest.mark.parametrize("name", PATTERNS)
def test_equals_naive_in_logits_and_gradients(name, layer, extra):
    model = shaken(tiny(PATTERNS[name], layer=layer, extra=extra).double())
    images, _, order = drawn(model.encoder, 2)
    ours, naive = both(model, images, order), naive_both(model, images, order)
    torch.testing.assert_close(ours, naive, atol=1e-9, rtol=0)
    torch.testing.assert_close(model.logits(images, order), ours[0], atol=1e-12, rtol=0)
    assert (ours[0] - ours[1]).abs().max() > 0.1
    directions = [torch.randn_like(logits) for logits in ours]
    parameters = list(model.parameters())
    found, expected = (
        torch.autograd.grad(sum((one * way).sum() for one, way in zip(pair, directions, strict=True)), parameters)
        for pair in (ours, naive)
    )
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize(("length", "groups", "fill"), cases(12, seed=2, largest=8))
def test_second_prediction_depends_on_exactly_the_earlier_patches(length, groups, fill):
    """One copy of the image per query; only the k-th prediction of copy k is differentiated."""
    model = shaken(tiny(reveal(length, groups, fill), grid=(1, length)).double())
    images, _, order = drawn(model.encoder, 1, seed=length)
    count = sum(groups)
    images = images.expand(count, -1, -1, -1).clone().requires_grad_()
    queries = torch.arange(count)
    _, second = both(model, images, order.expand(count, -1))
    (second[queries, queries] * torch.randn(count, 11, dtype=torch.float64)).sum().backward()
    influence = images.grad.abs().unfold(3, PATCH, PATCH).sum((1, 2, 4))[:, order[0, 1:] - 1]
    time = torch.tensor(times(length, groups))[1:]
    earlier = time[None, :] < time[-count:, None]
    assert (influence[~earlier] == 0).all()
    assert (influence[earlier] > 1e-9).all()


@pytest.mark.parametrize("name", PATTERNS)
def test_late_layers_reach_the_second_prediction_only_through_cls(name):
    """The encoder's later blocks get gradient from it, and none through rows other than CLS."""
    model = shaken(tiny(PATTERNS[name]))
    images, _, order = drawn(model.encoder, 2)
    late = list(model.encoder.blocks[2:].parameters())
    _, second = both(model, images, order)
    direction = torch.randn_like(second)
    through_cls = torch.autograd.grad((second * direction).sum(), late)
    assert all(gradient.abs().max() > 0 for gradient in through_cls)
    _, rest = model._layers(model.rows(images, order), None)
    rest.retain_grad()
    model._layers = lambda rows, seed: (rows, rest)
    (both(model, images, order)[1] * direction).sum().backward()
    assert rest.grad[:, 0].abs().max() > 0
    assert (rest.grad[:, 1:] == 0).all()


def test_losses_by_hand():
    model = shaken(tiny(mim(12, 8)))
    images, tokens, order = drawn(model.encoder, 5)
    metrics = model(images, tokens, order)
    target = torch.stack([tokens[image, order[image, 5:] - 1] for image in range(5)])
    losses = [-x.log_softmax(-1).gather(-1, target[:, :, None]).mean().item() for x in both(model, images, order)]
    assert [metrics["token_loss"].item(), metrics["cls_loss"].item()] == pytest.approx(losses)
    assert metrics["loss"].item() == pytest.approx(sum(losses))
    plain = TokenPrediction.forward(model, images, tokens, order)
    assert metrics["token_loss"].item() == pytest.approx(plain["loss"].item())
    assert metrics["accuracy"] == plain["accuracy"]


def test_initialisation_equals_plain_prediction():
    """Encoder, mask token and head are drawn as without aggregation; extra blocks as the encoder's."""
    models = []
    for build in (lambda e: TokenPrediction(e, mim(12, 8), 11), lambda e: ClassAggregation(e, mim(12, 8), 11, layer=1)):
        torch.manual_seed(0)
        models.append(build(Encoder((6, 8), PATCH, embed_dim=96, depth=3, num_heads=2, init_values=0.1)))
    plain, both = (model.state_dict() for model in models)
    assert all(torch.equal(both[name], tensor) for name, tensor in plain.items())
    added = {name: tensor for name, tensor in both.items() if name not in plain}
    assert all(name.startswith("cls_blocks.") for name in added)
    for name, tensor in added.items():
        if tensor.ndim == 2:
            assert tensor.std().item() == pytest.approx(0.02, rel=0.05), name
        elif name.endswith("bias"):
            assert (tensor == 0).all(), name


def test_stochastic_depth_follows_each_images_seed():
    model = shaken(tiny(mim(12, 8), drop_path_rate=0.5)).train()
    images, _, order = drawn(model.encoder, 16)
    seed = torch.arange(16)
    with torch.no_grad():
        together = torch.stack(both(model, images, order, seed))
        parts = [slice(0, 5), slice(5, 16)]
        apart = torch.cat([torch.stack(both(model, images[p], order[p], seed[p])) for p in parts], dim=1)
        torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together[0], model.logits(images, order, seed), atol=1e-5, rtol=1e-5)
        plain = torch.stack(both(model.eval(), images, order, seed))
    assert not torch.allclose(together[1], plain[1], atol=1e-2)


@pytest.mark.parametrize(("layer", "extra"), [(0, 2), (3, 2), (2, 0), (4, 1)])
def test_invalid_layers(layer, extra):
    with pytest.raises(ValueError, match="depth of 4"):
        tiny(mim(12, 8), layer=layer, extra=extra)
