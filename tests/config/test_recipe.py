"""Recipes: values that go to YAML and back, refuse nonsense, and can be compared."""

from dataclasses import fields, replace

import pytest
import torch

from mapet.build.pretrain import build_objective, build_pattern, mae_decoder
from mapet.config.checks import OBJECTIVES
from mapet.config.finetune import FinetuneRecipe
from mapet.config.recipe import Model, Objective, Optimization, Recipe, Runtime, diff, fair, load, save, settings
from mapet.config.recipes import catalogue
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
        ("optimization: {epochs: many}", "optimization.epochs"),
        ("model: [", "no YAML"),
        ("model: 3", "model"),
        ("- a", "the whole"),
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
        with pytest.raises(MapetError, match=f"{name} does not fit: it must be at least 0"):
            kind(optimization=Optimization(**{name: number}))


def test_settings_that_change_results_and_those_that_must_not_are_apart():
    ours = {name.rsplit(".", 1)[-1] for name in settings(Recipe())}
    assert ours.isdisjoint(one.name for one in fields(Runtime))
    assert len(ours) == len(settings(Recipe())), "flat option names must be unique"


def test_fair_ignores_the_objective_alone():
    a = Recipe(objective=Objective(objective="mapet"))
    b = Recipe(objective=Objective(objective="mim", order="blockwise"))
    assert fair(a, b) == []
    assert set(diff(a, b)) == {"objective.objective", "objective.order"}
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
    small = Model(model="custom", embed_dim=16, depth=2, num_heads=2, image_size=16, patch_size=4)
    starts = [
        build_objective(Recipe(model=small, objective=Objective(objective=name)), 32).state_dict()
        for name in OBJECTIVES
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
    model = Model(model="custom", embed_dim=width, depth=2, num_heads=heads, image_size=16, patch_size=4)
    recipe = Recipe(model=model, objective=Objective(objective="mae"))
    assert mae_decoder(recipe) == {"decoder_embed_dim": decoder, "decoder_depth": 1, "decoder_num_heads": heads}
    build_objective(recipe, 0)
    own = replace(recipe, objective=replace(recipe.objective, decoder_embed_dim=20, decoder_num_heads=5))
    assert build_objective(own, 0).decoder_embed.out_features == 20


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ({"objective": "mim", "groups": 3}, "groups does not fit"),
        ({"objective": "cae", "groups": 3}, "mapet and pet"),
        ({"objective": "mapet", "groups": 1000}, "hidden patches"),
        ({"objective": "mae", "cls_layer": 3}, "cls_layer"),
        ({"objective": "mapet", "cls_layer": 11}, "1 … 10"),
        ({"objective": "mapet", "decoder_depth": 2}, "cae and mae"),
        ({"objective": "mae", "decoder_embed_dim": 16}, "decoder_num_heads"),
        ({"objective": "mae", "decoder_embed_dim": 18, "decoder_num_heads": 2}, "divisible by 4"),
        ({"objective": "mae", "decoder_embed_dim": 16, "decoder_num_heads": 3}, "a divisor"),
        ({"objective": "mae", "decoder_depth": 0}, "at least 1"),
        ({"objective": "mae", "alignment_weight": 1.0}, "for cae"),
        ({"objective": "cae", "alignment_weight": -1.0}, "at least 0"),
        ({"objective": "cae", "normalize_pixels": False}, "for mae"),
        ({"objective": "cae", "mask_ratio": 1.0}, "at least one patch"),
        ({"objective": "cae", "regressor_depth": 0}, "at least 1"),
    ],
)
def test_an_objective_s_settings_are_its_own(objective, said):
    with pytest.raises(MapetError, match=r".") as error:
        Recipe(objective=Objective(**objective))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_cae_needs_a_width_that_its_positions_can_have():
    model = Model(model="custom", embed_dim=6, depth=2, num_heads=2)
    with pytest.raises(MapetError, match="divisible by 4"):
        Recipe(model=model, objective=Objective(objective="cae"))
    wide = Objective(objective="cae", decoder_embed_dim=8, decoder_num_heads=2)
    build_objective(Recipe(model=model, objective=wide), 32)
