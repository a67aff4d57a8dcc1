"""Settings that version 0.1 wrote are read under today's names."""

from pathlib import Path

import pytest

from mapet.api.compare.plan import Plan
from mapet.config.file import read, save
from mapet.config.finetune import FinetuneRecipe
from mapet.config.flat import dotted
from mapet.config.recipe import Recipe
from mapet.config.upgrade import upgraded
from mapet.config.vqkd import VQKDRecipe
from mapet.utils.errors import MapetError

ROOT = Path(__file__).parents[2]
EARLIER = ROOT / "tests" / "fixtures" / "v0.1"
PLAN = EARLIER / "compare" / "compare.yaml"
COMPARISONS = [  # of version 0.1, where an objective had a field of this name
    path for path in sorted(ROOT.glob("results/cifar10/**/compare.yaml")) if "    objective: " in path.read_text()
]

ROWS = [
    (
        "pretrain",
        Recipe,
        {
            "data": "/tmp/v01/images",
            "max_images": None,
            "model.name": "custom",
            "objective.name": "mapet",
            "objective.groups": 4,
            "tokenizer.path": None,
            "tokenizer.vocab_size": 8,
            "tokenizer.fit_images": None,
            "tokenizer.kmeans_init": "k-means++",
            "tokenizer.kmeans_mode": "sample",
            "tokenizer.kmeans_precision": "float32",
        },
    ),
    ("finetune", FinetuneRecipe, {"init": "/tmp/v01/pretrain", "max_images": None, "backbone.name": None}),
    ("vqkd", VQKDRecipe, {"vocab_size": 8, "max_images": None, "batch_size": 12}),
]


@pytest.mark.parametrize(("folder", "kind", "wanted"), ROWS)
def test_recipes_of_0_1_load_and_are_written_under_new_names(folder, kind, wanted, tmp_path):
    recipe = read(EARLIER / folder / "recipe.yaml", kind)
    found = dotted(recipe)
    assert {name: found[name] for name in wanted} == wanted
    save(recipe, tmp_path / "new.yaml")
    assert read(tmp_path / "new.yaml", kind) == recipe
    text = (tmp_path / "new.yaml").read_text()
    for earlier in ("limit:", "codes:", "start:", "mode: ", "distances:", "fit_pictures:"):
        assert f"\n{earlier}" not in text
        assert f"\n  {earlier}" not in text


@pytest.mark.parametrize("path", [PLAN, *COMPARISONS], ids=lambda path: path.parent.name)
def test_comparisons_of_0_1_load(path):
    plan = read(path, Plan)
    assert plan.recipe.data
    assert plan.recipe.model.name == "custom"
    assert plan.tuning.init == ""


def test_there_are_comparisons_to_load():
    assert len(COMPARISONS) == 5


def test_only_earlier_names_change():
    content = {"limit": 3, "tokenizer": {"codes": 8, "metric": "cosine"}, "other": 1, "model": None, "seed": {}}
    wanted = {
        "max_images": 3,
        "tokenizer": {"vocab_size": 8, "metric": "cosine"},
        "other": 1,
        "model": None,
        "seed": {},
    }
    assert upgraded(content, Recipe) == wanted
    assert upgraded(wanted, Recipe) == wanted
    assert upgraded([1], Recipe) == [1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs: 3", '"epochs" does not belong here: write it under "optimization".'),
        ("model: {seed: 3}", '"seed" does not belong here: write it at the top level.'),
        ("objective: {vocab_size: 3}", '"vocab_size" does not belong here: write it under "tokenizer".'),
        ("objective: {model: vit_tiny}", '"model" does not belong here: write it under "model" as name.'),
        ("limit: 3\nmax_images: 4", 'There is no setting "limit": it is called "max_images" now.'),
        ("tokenizer: {objective: mae}", '"objective" does not belong here: write it under "objective" as name.'),
        ("data: 2001-99-99", "is not YAML"),
        ("seed: !!int abc", "is not YAML"),
        ("? [a]\n: b", "is not YAML"),
        ("1: 2", 'There is no setting "1".'),
        ("[" * 5000, "is not YAML"),
        ("seed: 1e400", "seed must be a whole number"),
        ("hflip: .nan", "hflip must be a finite number"),
        ("optimization: {betas: [0.9]}", "betas must be two numbers, got"),
        ("optimization: {batch_size: -1}", "batch_size must be >= 1, got -1."),
        ("optimization: 3", "optimization must be a group of settings (epochs, batch_size, lr, …), got 3."),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(tmp_path, text, said):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(MapetError, match=r".") as error:
        read(path, Recipe)
    assert said in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
