"""What is compared is equal: losses and gradients of every formulation, at a tiny size. Nothing is timed."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mapet.api.benchmark import peers
from mapet.api.benchmark.case import OURS, Case, dense_batch, implementations, require_equal
from mapet.api.benchmark.dense import dense_masks
from mapet.api.benchmark.loading import LOADERS, Loading, pretrain_batches
from mapet.config.recipe import Model, Objective, Optimization, Recipe
from mapet.engine.distributed import init_fabric
from mapet.method.order import uniform
from mapet.utils.errors import MapetError

SHAPE = {"model": "custom", "embed_dim": 24, "depth": 3, "num_heads": 3, "image_size": 16, "patch_size": 4}


def case(objective, against, **model):
    recipe = Recipe(
        model=Model(**SHAPE, init_values=model.pop("init_values", 0.5), **model),
        objective=Objective(objective=objective, mask_ratio=0.5),
        optimization=Optimization(batch_size=3),
    )
    return Case(recipe, against=(against,), vocabulary=13)


def shaken(monkeypatch):
    """Random weights in place of the first ones, so that no part of a model is without effect."""
    from mapet.api.benchmark import case as room

    build = room.build_objective

    def shaking(recipe, vocabulary):
        objective = build(recipe, vocabulary)
        with torch.no_grad():
            for parameter in objective.parameters():
                if parameter.requires_grad:
                    parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        return objective

    monkeypatch.setattr(room, "build_objective", shaking)


@pytest.fixture(scope="module")
def fabric():
    return init_fabric(accelerator="cpu")


@pytest.mark.parametrize(
    ("objective", "against", "init_values"),
    [("mapet", "dense", 0.5), ("mapet", "dense", None), ("mim", "transformers", 0.5), ("mae", "transformers", None)],
)
def test_every_formulation_gives_our_loss_and_gradients(objective, against, init_values, monkeypatch):
    if against == "transformers":
        pytest.importorskip("transformers")
    shaken(monkeypatch)
    ours, theirs = implementations(case(objective, against, init_values=init_values))
    assert (ours.name, theirs.name) == (OURS, against)
    losses = [one.module.eval()(**one.batch)["loss"] for one in (ours, theirs)]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=0)
    for loss in losses:
        loss.backward()
    totals = [
        torch.stack([p.grad.square().sum() for p in one.module.parameters() if p.grad is not None]).sum().sqrt()
        for one in (ours, theirs)
    ]
    torch.testing.assert_close(*totals, atol=1e-4, rtol=1e-4)


def test_dense_gradients_one_by_one(monkeypatch):
    shaken(monkeypatch)
    ours, dense = implementations(case("mapet", "dense"))
    for one in (ours, dense):
        one.module(**one.batch)["loss"].backward()
    theirs = {name: parameter.grad for name, parameter in dense.module.named_parameters()}
    for name, parameter in ours.module.named_parameters():
        parts = [name.replace("qkv", part) for part in ("q", "kv")] if ".qkv." in name else [name]
        expected = torch.cat([theirs.pop(part) for part in parts])
        torch.testing.assert_close(parameter.grad, expected, atol=2e-5, rtol=1e-4)
    assert not theirs


def test_disagreeing_models_are_not_timed(fabric):
    one = case("mapet", "dense")
    every = implementations(one)
    require_equal(every, one, fabric)
    with torch.no_grad():
        every[1].module.head.bias[0] += 1
    with pytest.raises(MapetError, match="the loss of dense"):
        require_equal(every, one, fabric)


def test_masks_hide_as_much_as_the_pattern():
    """Every row of both streams sees as many keys as there are positions."""
    order = torch.stack([F.pad(1 + torch.randperm(12), (1, 0)) for _ in range(3)])
    content, query = dense_masks(order, 5, heads=2)
    assert content.shape == (3, 2, 21, 21)
    assert query.shape == (3, 2, 8, 21)
    assert content.dtype == query.dtype == torch.float32
    assert ((content == 0).sum(-1) == 13).all()
    assert ((query == 0).sum(-1) == 13).all()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("scale", [None, (0.3, 1.0)])
def test_the_reference_loads_the_same_pictures_tokens_and_masks(images, workers, scale):
    one = case("mapet", "dense")
    one = replace(one, recipe=replace(one.recipe, scale=scale, optimization=Optimization(batch_size=20)))
    loading = Loading(str(images), workers, cache_gib=0)
    ours, dense = (
        LOADERS[name](pretrain_batches(one, loading, 3, torch.device("cpu")), one) for name in (OURS, "dense")
    )
    for _ in range(3):  # 48 images: the third batch is of the second epoch
        mine, theirs = next(ours), next(dense)
        expected = dense_batch(mine, one.recipe.context, 3)
        assert expected.keys() == theirs.keys()
        assert all(torch.equal(theirs[name], expected[name]) for name in expected)


def test_orders_of_drawn_batches_are_the_recipes():
    ours, _ = implementations(case("mapet", "dense"))
    assert torch.equal(ours.batch["order"], uniform((4, 4), 8, 0, 0, torch.arange(3)))


@pytest.mark.parametrize(
    ("objective", "against", "model", "said"),
    [("mapet", "dens", {}, '"dense"'), ("mae", "transformers", {"init_values": 0.1}, "--init-values None")],
)
def test_what_cannot_be_compared_is_told(objective, against, model, said):
    with pytest.raises(MapetError, match=said):
        implementations(case(objective, against, **model))


def test_the_declared_transformers_are_new_enough(monkeypatch):
    transformers = pytest.importorskip("transformers")
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    (least,) = (one for one in project["optional-dependencies"]["dev"] if one.startswith("transformers>="))
    monkeypatch.setattr(transformers, "__version__", least.removeprefix("transformers>="))
    assert peers.installed() is transformers
    monkeypatch.setattr(transformers, "__version__", "4.57.1")
    with pytest.raises(MapetError, match=r"version 5, and 4\.57\.1"):
        peers.installed()
