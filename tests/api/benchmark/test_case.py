"""What is compared is equal: losses and gradients of every implementation, at a tiny size. Nothing is timed."""

import tomllib
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mapet.api.benchmark import baselines, measure
from mapet.api.benchmark.case import OURS, Case, implementations, require_equal
from mapet.api.benchmark.loading import Loading, pretrain_batches
from mapet.config.benchmark import BenchmarkSettings
from mapet.config.recipe import Model, Objective, Optimization, Recipe
from mapet.engine.distributed import init_fabric
from mapet.method.order import uniform
from mapet.utils.errors import MapetError

LOADERS = baselines.find().LOADERS
dense, transformers_models = (import_module(f"baselines.{name}") for name in ("dense", "transformers_models"))
SHAPE = {"name": "custom", "embed_dim": 24, "depth": 3, "num_heads": 3, "image_size": 16, "patch_size": 4}


def case(objective, baseline, **model):
    recipe = Recipe(
        model=Model(**SHAPE, init_values=model.pop("init_values", 0.5), **model),
        objective=Objective(name=objective, mask_ratio=0.5),
        optimization=Optimization(batch_size=3),
    )
    return Case(recipe, baseline=(baseline,), vocabulary=13)


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
    ("objective", "baseline", "init_values"),
    [("mapet", "dense", 0.5), ("mapet", "dense", None), ("mim", "transformers", 0.5), ("mae", "transformers", None)],
)
def test_every_implementation_gives_our_loss_and_gradients(objective, baseline, init_values, monkeypatch):
    if baseline == "transformers":
        pytest.importorskip("transformers")
    shaken(monkeypatch)
    ours, theirs = implementations(case(objective, baseline, init_values=init_values))
    assert (ours.name, theirs.name) == (OURS, baseline)
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
    ours, theirs = implementations(case("mapet", "dense"))
    for one in (ours, theirs):
        one.module(**one.batch)["loss"].backward()
    grads = {name: parameter.grad for name, parameter in theirs.module.named_parameters()}
    for name, parameter in ours.module.named_parameters():
        parts = [name.replace("qkv", part) for part in ("q", "kv")] if ".qkv." in name else [name]
        expected = torch.cat([grads.pop(part) for part in parts])
        torch.testing.assert_close(parameter.grad, expected, atol=2e-5, rtol=1e-4)
    assert not grads


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
    content, query = dense.dense_masks(order, 5, heads=2)
    assert content.shape == (3, 2, 21, 21)
    assert query.shape == (3, 2, 8, 21)
    assert content.dtype == query.dtype == torch.float32
    assert ((content == 0).sum(-1) == 13).all()
    assert ((query == 0).sum(-1) == 13).all()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("scale", [None, (0.3, 1.0)])
def test_the_reference_loads_the_same_images_tokens_and_masks(images, workers, scale):
    one = case("mapet", "dense")
    one = replace(one, recipe=replace(one.recipe, scale=scale, optimization=Optimization(batch_size=20)))
    loading = Loading(str(images), workers, cache_gib=0)
    ours, reference = (pretrain_batches(one, loading, 3, torch.device("cpu")) for _ in range(2))
    ours, reference = ours(0), LOADERS["dense"](reference, one)
    for _ in range(3):  # 48 images: the third batch is of the second epoch
        mine, theirs = next(ours), next(reference)
        expected = dense.dense_batch(mine, one.recipe.context, 3)
        assert expected.keys() == theirs.keys()
        assert all(torch.equal(theirs[name], expected[name]) for name in expected)


def test_orders_of_random_batches_are_the_recipes():
    ours, _ = implementations(case("mapet", "dense"))
    assert torch.equal(ours.batch["order"], uniform((4, 4), 8, 0, 0, torch.arange(3)))


@pytest.mark.parametrize(
    ("objective", "baseline", "model", "said"),
    [("mae", "transformers", {"init_values": 0.1}, "init_values None")],
)
def test_a_baseline_that_cannot_compute_the_recipe_is_refused(objective, baseline, model, said):
    pytest.importorskip("transformers")
    with pytest.raises(MapetError, match=said):
        implementations(case(objective, baseline, **model))


def test_settings_take_one_value_or_a_list_or_commas():
    s = BenchmarkSettings(batch_sizes="4, 8", scaling=2, compile=[False, True], baseline="dense")
    assert (s.batch_sizes, s.scaling, s.compile, s.baseline) == ((4, 8), (2,), ("off", "on"), ("dense",))
    with pytest.raises(MapetError, match='Did you mean "dense"'):
        BenchmarkSettings(baseline="dens")


def test_baselines_come_with_the_repository(monkeypatch, tmp_path):
    monkeypatch.setattr(baselines, "__file__", str(tmp_path / "lib" / "python" / "mapet" / "api" / "benchmark.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MapetError, match="run mapet bench in a clone"):
        baselines.find()
    monkeypatch.chdir(Path(__file__).parents[3])
    assert baselines.find().LOADERS is LOADERS


def test_the_declared_transformers_are_new_enough(monkeypatch):
    transformers = pytest.importorskip("transformers")
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    (least,) = (one for one in project["optional-dependencies"]["dev"] if one.startswith("transformers>="))
    monkeypatch.setattr(transformers, "__version__", least.removeprefix("transformers>="))
    assert transformers_models.installed() is transformers
    monkeypatch.setattr(transformers, "__version__", "4.57.1")
    with pytest.raises(MapetError, match=r"version 5, and 4\.57\.1"):
        transformers_models.installed()


def test_implementations_are_compared_before_they_are_timed(fabric, monkeypatch):
    def differ(every, one, given):
        assert [each.name for each in every] == ["ours", "dense"]
        raise MapetError("they differ")

    monkeypatch.setattr(measure, "require_equal", differ)
    monkeypatch.setattr(measure, "Runner", None)
    with pytest.raises(MapetError, match="they differ"):
        next(measure.measured(case("mapet", "dense"), fabric, BenchmarkSettings(), print))


def test_as_many_batches_come_as_steps_are_measured_however_few_images_there_are(images):
    one = case("mim", "transformers")
    one = replace(one, recipe=replace(one.recipe, optimization=Optimization(batch_size=40)))
    batches = pretrain_batches(one, Loading(str(images), 0, cache_gib=0), 5, torch.device("cpu"))
    assert len([*batches(0)]) >= 5
