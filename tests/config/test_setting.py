"""Every refusal names the setting, what it must be, and the value."""

import dataclasses
import importlib
import pkgutil
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

import mapet.config
from mapet.api.compare.plan import Plan
from mapet.config.evaluate import EvaluateSettings
from mapet.config.finetune import Augmentation, Backbone, FinetuneRecipe
from mapet.config.flat import earlier, paths, updated, with_settings
from mapet.config.quickstart import QuickstartSettings
from mapet.config.recipe import Model, Objective, Optimization, Recipe, Runtime, Tokenizer
from mapet.config.refusal import choices
from mapet.config.runtime import PretrainRuntime
from mapet.config.setting import Option, settings
from mapet.config.verbs import TokenizeSettings
from mapet.config.vqkd import VQKDRecipe
from mapet.utils.errors import MapetError

SIZES = "vit_tiny, vit_small, vit_base, vit_large, custom"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Optimization(epochs=-1), "--epochs must be > 0, got -1."),
        (lambda: Optimization(-1), "--epochs must be > 0, got -1."),
        (lambda: Optimization(epochs="three"), '--epochs must be a number, got "three".'),
        (lambda: Optimization(epochs=float("inf")), "--epochs must be a finite number, got inf."),
        (lambda: Recipe(seed=-1), f"--seed must be >= 0 and < {2**63}, got -1."),
        (lambda: VQKDRecipe(seed=2**64), f"--seed must be >= 0 and < {2**63}, got {2**64}."),
        (lambda: EvaluateSettings(seed=2**63), f"--seed must be >= 0 and < {2**63}, got {2**63}."),
        (lambda: QuickstartSettings(seed=-1), f"--seed must be >= 0 and < {2**63}, got -1."),
        (lambda: TokenizeSettings(seed=-1), f"--seed must be >= 0 and < {2**63}, got -1."),
        (lambda: Plan(recipe=Recipe(seed=2**63 - 1), seeds=2), f"--seed must be >= 0 and < {2**63}, got {2**63}."),
        (lambda: Optimization(batch_size=1.5), "--batch-size must be a whole number, got 1.5."),
        (lambda: Optimization(betas=(0.9, 1.5)), "--betas must be >= 0 and < 1, got 1.5."),
        (lambda: Optimization(betas=(0.9,)), "--betas must be two numbers, got (0.9,)."),
        (lambda: Optimization(no_decay="bias"), '--no-decay must be several names, got "bias".'),
        (lambda: Optimization(ema_decay=1), "--ema-decay must be > 0 and < 1, got 1."),
        (lambda: Backbone(8, 2, "custom", 8, 1, 4, 0.1, "learn", "more"), "Backbone takes 8 settings, got more."),
        (lambda: Model("vit_tinny"), f'--model must be one of {SIZES}, got "vit_tinny". Did you mean "vit_tiny"?'),
        (lambda: Model(pos_embed=None), "--pos-embed must be learn or sincos, got None."),
        (lambda: Model(patch_size=15), "--patch-size must divide --image-size 224 at least twice, got 15."),
        (lambda: Objective("MaPeT"), 'got "MaPeT". Did you mean "mapet"?'),
        (lambda: Objective("beit"), 'got "beit". Did you mean "mim"?'),
        (lambda: Objective("mae", groups=2), "--groups only applies to mapet and pet, not mae; remove it."),
        (lambda: Objective(normalize_pixels="maybe"), '--normalize-pixels must be true or false, got "maybe".'),
        (lambda: Tokenizer(vocab_size=1), "--vocab-size must be >= 2 and <= 65536, got 1."),
        (lambda: Tokenizer(codes=8), 'There is no setting "codes": it is called "vocab_size" now.'),
        (lambda: Recipe(dtaa=3), 'There is no setting "dtaa". Did you mean "data"?'),
        (lambda: Recipe(epochs=3), '"epochs" does not belong here: write it under "optimization".'),
        (lambda: Recipe(data=3), "--data must be text, got 3."),
        (lambda: Recipe(model=3), "--model must be a group of settings (name, embed_dim, depth, …), got 3."),
        (lambda: Recipe(scale=(1, 0.5)), "--scale must be two numbers, 0 < low <= high <= 1, got 1 0.5."),
        (lambda: Recipe(tokens="a", tokenizer=Tokenizer("b")), "Pass --tokens or --tokenizer, not both."),
        (lambda: Runtime(strategy="fsdb"), '--strategy must be ddp or fsdp, got "fsdb". Did you mean "fsdp"?'),
        (lambda: Runtime(workers="x"), '--workers must be a whole number or None, got "x".'),
        (lambda: Backbone(name="vit"), f'--model must be one of {SIZES}, None, got "vit".'),
        (lambda: Augmentation(ratio=(0, 1)), "--ratio must be two numbers, 0 < low <= high, got 0 1."),
        (lambda: FinetuneRecipe(layer_decay=0), "--layer-decay must be > 0 and <= 1, got 0."),
        (lambda: VQKDRecipe(num_heads=7), "--num-heads must divide --embed-dim 768, got 7."),
        (lambda: updated(Recipe(), mdoel="vit_base"), 'There is no setting "mdoel". Did you mean "model"?'),
        (lambda: updated(Recipe(), limit=3), 'There is no setting "limit": it is called "max_images" now.'),
        (lambda: updated(Recipe(), epochs=0), "--epochs must be > 0, got 0."),
    ],
)
def test_a_refusal_is_one_line_with_the_value(make, said):
    with pytest.raises(MapetError, match=r".") as error:
        make()
    assert said in error.value.option_text
    assert "\n" not in error.value.option_text


def test_settings_are_frozen_and_numbers_take_their_type():
    recipe = Recipe(data=Path("images"), scale=[0.2, 1], seed=3)
    assert (recipe.data, recipe.scale) == ("images", (0.2, 1.0))
    with pytest.raises(AttributeError):
        recipe.seed = 4
    assert hash(recipe) == hash(Recipe(data="images", scale=(0.2, 1.0), seed=3))


def test_flat_names_and_earlier_names():
    known = paths(Recipe)
    assert (known["model"], known["objective"], known["tokenizer"]) == (
        "model.name",
        "objective.name",
        "tokenizer.path",
    )
    assert earlier(Recipe)["codes"] == "vocab_size"
    assert earlier(Runtime) == {"micro_batch": "micro_batch_size", "memory": "cache_gib", "max_bad": "max_bad_fraction"}
    changed = updated(Recipe(), model="vit_base", epochs=3, seed=1)
    assert (changed.model.name, changed.optimization.epochs, changed.seed) == ("vit_base", 3, 1)
    assert with_settings(Recipe(), {"model.name": "vit_base", "optimization.epochs": 3, "seed": 1}) == changed


def test_a_class_of_settings_says_all_at_its_fields():
    @settings
    class Pooling:
        kind: Annotated[Literal["avg", "token"], Option("pool")] = "avg"
        power: Annotated[float | None, Field(gt=0)] = None

    assert Pooling() == Pooling("avg", None)
    with pytest.raises(MapetError, match="pool must be avg or token, got 3"):
        Pooling(3)
    with pytest.raises(MapetError, match="power must be > 0, got -1"):
        Pooling(power=-1)


def test_no_choice_is_an_empty_word():
    """A refusal and the help could not name it."""
    nameless = [
        f"{kind.__qualname__}.{one.name}"
        for module in pkgutil.walk_packages(mapet.config.__path__, "mapet.config.")
        for kind in vars(importlib.import_module(module.name)).values()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind)
        for one in dataclasses.fields(kind)
        if "" in choices(one.type)
    ]
    assert not nameless


def test_none_is_the_word_for_no_choice():
    with pytest.raises(MapetError, match="logger must be one of none, trackio, wandb, got"):
        Runtime(logger="csv")
    assert Runtime(logger="").logger == PretrainRuntime(keep_best="").keep_best == "none"
