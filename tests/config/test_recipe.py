"""Recipes: values that go to YAML and back, refuse nonsense, and can be compared."""

from dataclasses import replace

import pytest
import torch

from mapet.build.objectives import build_pattern, mae_decoder
from mapet.build.pretrain import build_objective
from mapet.config.finetune import FinetuneRecipe
from mapet.config.flat import dotted, earlier, paths
from mapet.config.recipe import (
    OBJECTIVES,
    Model,
    Objective,
    Optimization,
    Recipe,
    Runtime,
    diff,
    fair,
    load,
    save,
)
from mapet.config.recipes import catalogue
from mapet.config.vqkd import VQKDRecipe
from mapet.method.predict import TokenPrediction
from mapet.utils.errors import MapetError


@pytest.mark.parametrize("name", catalogue())
def test_every_named_recipe_survives_yaml_and_builds(name, tmp_path):
    recipe = catalogue()[name]()
    save(recipe, tmp_path / "recipe.yaml")
    assert load(tmp_path / "recipe.yaml") == recipe
    with torch.device("meta"):
        objective = build_objective(recipe, 32)
    given = objective.pattern.context if isinstance(objective, TokenPrediction) else objective.context
    assert given == recipe.context == 1 + recipe.grid[0] * recipe.grid[1] - recipe.num_masked
    assert (catalogue()[name].__doc__ or "").strip()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mdel: {}", 'Did you mean "model"?'),
        ("model: {image-size: 32}", 'Did you mean "image_size"?'),
        ("optimization: {epochs: many}", 'epochs must be a number, got "many"'),
        ("model: [", "is not YAML"),
        ("model: 3", "model must be a group of settings (name, embed_dim, depth, …), got 3."),
        ("- a", "the settings must be a group of settings"),
        ("objective: {objective: mapt}", 'Did you mean "mapet"?'),
    ],
)
def test_a_wrong_file_is_explained_in_one_line(tmp_path, text, said):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(MapetError, match=r".") as error:
        load(tmp_path / "r.yaml")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("name", ["lr", "base_lr", "min_lr", "warmup_lr", "warmup_epochs", "weight_decay", "clip_grad"])
def test_rates_are_numbers(name, number):
    for kind in (Recipe, FinetuneRecipe):
        wanted = ">= 0" if number < 0 else "a finite number"
        with pytest.raises(MapetError, match=f"^{name} must be {wanted}, got {number:g}.$"):
            kind(optimization=Optimization(**{name: number}))


def test_settings_that_change_results_and_those_that_must_not_are_apart():
    assert paths(Recipe).keys().isdisjoint(paths(Runtime))


@pytest.mark.parametrize("kind", [Recipe, Runtime, FinetuneRecipe, VQKDRecipe])
def test_flat_names_are_unique(kind):
    assert len(paths(kind)) == len(dotted(kind()))
    assert paths(kind).keys().isdisjoint(earlier(kind))


def test_fair_ignores_the_objective_alone():
    a = Recipe(objective=Objective(name="mapet"))
    b = Recipe(objective=Objective(name="mim", order="blockwise"))
    assert fair(a, b) == []
    assert set(diff(a, b)) == {"objective.name", "objective.order"}
    c = replace(b, seed=1, optimization=Optimization(epochs=3))
    assert fair(a, c) == ["seed", "optimization.epochs"]


def test_the_learning_rate_scales_with_the_batch_unless_given():
    assert Recipe(optimization=Optimization(batch_size=2048)).lr == pytest.approx(1.5e-3)
    assert Recipe(optimization=Optimization(batch_size=2048, lr=0.5)).lr == 0.5


@pytest.mark.parametrize("groups", [1, 3, 5, 12])
def test_groups_part_the_hidden_patches_evenly(groups):
    recipe = Recipe(model=Model(image_size=64, patch_size=16), objective=Objective(groups=groups))
    pattern = build_pattern(recipe)
    assert len(pattern.predict) == 12
    if groups == 12:
        alone = build_pattern(Recipe(model=Model(image_size=64, patch_size=16)))
        assert pattern.visible.equal(alone.visible)


def test_every_objective_starts_from_the_same_encoder():
    small = Model(name="custom", embed_dim=16, depth=2, num_heads=2, image_size=16, patch_size=4)
    starts = [
        build_objective(Recipe(model=small, objective=Objective(name=name)), 32).state_dict() for name in OBJECTIVES
    ]
    encoders = [{name: start[name] for name in start if name.startswith("encoder.")} for start in starts]
    for start, encoder in zip(starts, encoders, strict=True):
        assert encoder.keys() == encoders[0].keys()
        assert all(encoder[name].equal(tensor) for name, tensor in encoders[0].items())
        assert start.keys() > encoder.keys()
    for start in starts[1:3]:  # of token prediction all is the same
        assert all(start[name].equal(tensor) for name, tensor in starts[0].items())
    other = build_objective(Recipe(model=small, seed=1), 32).state_dict()
    assert not other["encoder.pos_embed"].equal(starts[0]["encoder.pos_embed"])


@pytest.mark.parametrize(("width", "heads", "decoder"), [(128, 4, 64), (24, 3, 12), (16, 2, 8), (8, 2, 4), (8, 8, 8)])
def test_a_custom_model_s_pixels_are_painted_by_half_its_width(width, heads, decoder):
    model = Model(name="custom", embed_dim=width, depth=2, num_heads=heads, image_size=16, patch_size=4)
    recipe = Recipe(model=model, objective=Objective(name="mae"))
    assert mae_decoder(recipe) == {"decoder_embed_dim": decoder, "decoder_depth": 1, "decoder_num_heads": heads}
    build_objective(recipe, 0)
    own = replace(recipe, objective=replace(recipe.objective, decoder_embed_dim=20, decoder_num_heads=5))
    assert build_objective(own, 0).decoder_embed.out_features == 20


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ({"name": "mim", "groups": 3}, "groups only applies to mapet and pet, not mim; remove it."),
        ({"name": "cae", "groups": 3}, "mapet and pet, not cae"),
        ({"name": "mapet", "groups": 1000}, "groups must be <= 147, the number of masked patches, got 1000."),
        ({"name": "mae", "cls_layer": 3}, "cls_layer only applies to mapet, pet and mim"),
        ({"name": "mapet", "cls_layer": 11}, "cls_layer must be >= 1 and <= 10, the depth less 2, got 11."),
        ({"name": "mapet", "decoder_depth": 2}, "cae and mae"),
        ({"name": "mae", "decoder_embed_dim": 16}, "decoder_embed_dim and decoder_num_heads go together."),
        ({"name": "mae", "decoder_embed_dim": 18, "decoder_num_heads": 2}, "divisible by 4"),
        (
            {"name": "mae", "decoder_embed_dim": 16, "decoder_num_heads": 3},
            "decoder_num_heads must divide decoder_embed_dim 16, got 3.",
        ),
        ({"name": "mae", "decoder_depth": 0}, "must be >= 1, got 0."),
        ({"name": "mae", "alignment_weight": 1.0}, "only applies to cae, not mae"),
        ({"name": "cae", "alignment_weight": -1.0}, "alignment_weight must be >= 0, got -1."),
        ({"name": "cae", "normalize_pixels": False}, "only applies to mae, not cae"),
        ({"name": "cae", "mask_ratio": 1.0}, "at least one visible patch"),
        ({"name": "cae", "regressor_depth": 0}, "must be >= 1, got 0."),
    ],
)
def test_an_objective_s_settings_are_its_own(objective, said):
    with pytest.raises(MapetError, match=r".") as error:
        Recipe(objective=Objective(**objective))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_cae_needs_a_width_that_its_positions_can_have():
    model = Model(name="custom", embed_dim=6, depth=2, num_heads=2)
    with pytest.raises(MapetError, match="divisible by 4"):
        Recipe(model=model, objective=Objective(name="cae"))
    wide = Objective(name="cae", decoder_embed_dim=8, decoder_num_heads=2)
    build_objective(Recipe(model=model, objective=wide), 32)
