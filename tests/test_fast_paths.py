"""What makes a step cheaper leaves its figures and gradients alone, for every objective."""

from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from mapet.build.pretrain import build_objective
from mapet.config.recipe import OBJECTIVES, Model, Objective, Recipe
from mapet.engine.memory import recompute
from mapet.method.order import uniform
from processes import Forked, finished

VOCABULARY, BATCH = 32, 4
MODEL = Model(name="custom", embed_dim=32, depth=3, num_heads=2, image_size=32, patch_size=8, drop_path=0.3)
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


def held(objective, step):
    """Figures, gradients and the bytes that the forward pass keeps for the backward pass."""
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
def test_recomputed_blocks_give_the_same_bits_and_hold_less(kind):
    plain, thrifty = built(kind), built(kind)
    names = list(thrifty.state_dict())
    recompute(thrifty)
    assert list(thrifty.state_dict()) == names
    (ours, mine, less), (theirs, wanted, more) = (held(objective, 0) for objective in (thrifty, plain))
    assert all(torch.equal(ours[name], figure) for name, figure in theirs.items())
    assert mine.keys() == wanted.keys()
    assert all(torch.equal(mine[name], gradient) for name, gradient in wanted.items())
    assert less < 0.6 * more


@pytest.mark.parametrize("thrifty", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_one_graph_serves_every_step(kind, thrifty):
    """No break in it (``fullgraph``), and none but the first step is compiled."""
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


@pytest.mark.parametrize("kind", ["mapet", "mae"])
def test_compiled_gradients_are_the_plain_ones_under_bfloat16(kind, tmp_path):
    """Forward and backward pass as one traced graph each; in a process of its own, as its threads let none fork."""

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
