"""Recipes: values that go to YAML and back, refuse nonsense, and can be compared."""

from dataclasses import fields, replace

import pytest

from mapet.assemble import build_objective, build_pattern
from mapet.errors import MapetError
from mapet.recipe import Machine, Model, Objective, Optimization, Recipe, diff, fair, load, save, settings
from mapet.recipes import catalogue


@pytest.mark.parametrize("name", catalogue())
def test_every_named_recipe_survives_yaml_and_builds(name, tmp_path):
    recipe = catalogue()[name]()
    save(recipe, tmp_path / "recipe.yaml")
    assert load(tmp_path / "recipe.yaml") == recipe
    pattern = build_pattern(recipe)
    assert len(pattern.predict) == recipe.hidden
    assert pattern.length == recipe.grid[0] * recipe.grid[1]
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


def test_settings_that_change_results_and_those_that_must_not_are_apart():
    ours = {name.rsplit(".", 1)[-1] for name in settings(Recipe())}
    assert ours.isdisjoint(one.name for one in fields(Machine))
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
        for name in ("mapet", "pet", "mim")
    ]
    for start in starts[1:]:
        assert start.keys() == starts[0].keys()
        assert all(start[name].equal(tensor) for name, tensor in starts[0].items())
    other = build_objective(Recipe(model=small, seed=1), 32).state_dict()
    assert not other["encoder.pos_embed"].equal(starts[0]["encoder.pos_embed"])
