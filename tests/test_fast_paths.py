"""Recomputation and compilation change neither losses nor gradients, for every objective."""

from dataclasses import replace
from unittest.mock import Mock, patch

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from mapet.build.pretrain import build_objective
from mapet.config.recipe import OBJECTIVES, Model, Objective, Recipe
from mapet.engine.memory import recompute
from mapet.method.order import uniform
from mapet.utils import linear
from processes import Forked, finished

VOCABULARY, BATCH = 32, 4
MODEL = Model(name="custom", embed_dim=32, depth=3, num_heads=2, image_size=32, patch_size=8, drop_path=0.3)
HAS_ONEDNN = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
BY_ONEDNN = {"SLOW_MKL": True, "SMALLEST": 0}  # whatever the processor and the size of a product
KINDS = {**{name: Objective(name=name) for name in OBJECTIVES}, "beit2": Objective(name="mim", cls_layer=1)}


def built(kind):
    recipe = Recipe(data="x", model=replace(MODEL), objective=KINDS[kind])
    return build_objective(recipe, VOCABULARY).train()


def batch(step):
    generator = torch.Generator().manual_seed(step)
    index = torch.arange(BATCH) + BATCH * step
    return {
        "images": torch.randn(BATCH, 3, 32, 32, generator=generator),
        "tokens": torch.randint(VOCABULARY, (BATCH, 16), generator=generator),
        "order": uniform((4, 4), 12, 0, 0, index),
        "seed": index,
    }


def measured(objective, step):
    """Losses, gradients, and bytes that the forward pass saves for the backward pass."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    objective.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        figures = objective(**batch(step))
        figures["loss"].backward()
    return figures, {name: p.grad for name, p in objective.named_parameters() if p.requires_grad}, sum(kept.values())


@pytest.mark.parametrize("kind", KINDS)
def test_recomputation_is_bit_identical_and_saves_memory(kind):
    plain, thrifty = built(kind), built(kind)
    names = list(thrifty.state_dict())
    recompute(thrifty)
    assert list(thrifty.state_dict()) == names
    found, found_gradients, found_bytes = measured(thrifty, 0)
    expected, gradients, expected_bytes = measured(plain, 0)
    assert all(torch.equal(found[name], figure) for name, figure in expected.items())
    assert found_gradients.keys() == gradients.keys()
    assert all(torch.equal(found_gradients[name], gradient) for name, gradient in gradients.items())
    assert found_bytes < 0.6 * expected_bytes


@pytest.mark.parametrize("thrifty", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_step_uses_one_graph(kind, thrifty):
    """No graph break (``fullgraph``), and only the first step compiles."""
    torch._dynamo.reset()
    plain, objective, counter = built(kind), built(kind), CompileCounter()
    if thrifty:
        recompute(objective)
    compiled = torch.compile(objective, backend=counter, fullgraph=True)
    for step in range(3):
        expected, found = plain(**batch(step)), compiled(**batch(step))
        for name, figure in expected.items():
            torch.testing.assert_close(found[name], figure, atol=1e-6, rtol=1e-6)
    assert counter.frame_count == 1


@HAS_ONEDNN
@pytest.mark.parametrize("kind", KINDS)
def test_products_by_onednn_change_losses_and_gradients_by_rounding_alone(kind):
    expected, gradients, _ = measured(built(kind), 0)
    products = Mock(side_effect=linear._onednn)
    with patch.multiple(linear, _onednn=products, **BY_ONEDNN):
        found, found_gradients, _ = measured(built(kind), 0)
    assert products.called
    for name, figure in expected.items():
        torch.testing.assert_close(found[name], figure, atol=1e-6, rtol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found_gradients[name], gradient, atol=1e-6, rtol=1e-4)


@HAS_ONEDNN
@pytest.mark.parametrize("kind", ["mapet", "mae"])
def test_products_by_onednn_are_part_of_the_one_graph(kind, tmp_path):
    def work():
        plain, objective = built(kind), built(kind)
        compiled = torch.compile(objective, backend="aot_eager", fullgraph=True)
        wanted, found = plain(**batch(0)), compiled(**batch(0))
        wanted["loss"].backward()
        found["loss"].backward()
        gradients = dict(objective.named_parameters())
        for name, parameter in plain.named_parameters():
            torch.testing.assert_close(gradients[name].grad, parameter.grad, atol=1e-6, rtol=1e-4)

    with patch.multiple(linear, **BY_ONEDNN):
        finished([Forked(tmp_path, work=work)])


@pytest.mark.parametrize("kind", ["mapet", "mae"])
def test_compiled_gradients_equal_eager_ones_under_bfloat16(kind, tmp_path):
    """Forward and backward as one graph each; in a separate process, as its threads would prevent later forks."""

    def work():
        plain, objective = built(kind), built(kind)
        compiled = torch.compile(objective, backend="aot_eager", fullgraph=True)
        with torch.autocast("cpu", torch.bfloat16):
            wanted, found = plain(**batch(0)), compiled(**batch(0))
        wanted["loss"].backward()
        found["loss"].backward()
        assert found["loss"].dtype == torch.float32
        gradients = dict(objective.named_parameters())
        for name, parameter in plain.named_parameters():
            torch.testing.assert_close(gradients[name].grad, parameter.grad, atol=1e-5, rtol=1e-3)

    finished([Forked(tmp_path, work=work)])
