"""The tokens of a comparison: made once and read by all runs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mapet.api.compare.plan import Plan, Variant
from mapet.api.tokenize import fit_codebook, write_tokens
from mapet.config.flat import paths
from mapet.config.recipe import Model, Recipe, Runtime, Tokenizer
from mapet.utils.io import replace_file

VIEWED = ("image_size", "patch_size", "draft", "scale", "ratio", "hflip")
DECIDING = {name.replace("_", "-") for name in (*VIEWED, *paths(Tokenizer))}


def with_tokens(plan: Plan, variants: Sequence[Variant], out: Path, runtime: Runtime) -> list[Variant]:
    """The variants with their recipes' tokens (with random crops: tokenizer), which are made in ``out`` if missing.

    An objective that reads no tokens gets the others' tokens too: the store records which images are unreadable, so
    all objectives see the same images in the same order.

    Raises:
        MapetError: tokens that do not fit the student, or cannot be made.
    """
    readers = {
        _token_recipe(variant.recipe): variant
        for variant in reversed(variants)
        if variant.recipe.reads_tokens and _trained(variant, plan)
    }
    limits = [variant.recipe.max_images for variant in variants]
    most = max((limit for limit in limits if limit is not None), default=None) if None not in limits else None
    made = {}
    for recipe, variant in reversed(readers.items()):
        folder = out / ("tokenizer" if recipe.varied else "tokens") / (_name(variant) if len(readers) > 1 else "")
        made[recipe] = _made(replace(recipe, max_images=most), plan.seeds, folder, runtime)
    return [_with(variant, made) if made and _trained(variant, plan) else variant for variant in variants]


def _name(variant: Variant) -> str:
    """The varied settings that change the tokens, as a folder's name."""
    return ", ".join(f"{name}={text}" for name, text in variant.label if name in DECIDING).replace("/", "_")


def _trained(variant: Variant, plan: Plan) -> bool:
    return variant.method in plan.objectives


def _token_recipe(recipe: Recipe) -> Recipe:
    """The recipe's settings that change the tokens of an image; all else at its default."""
    return Recipe(
        data=recipe.data,
        max_pixels=recipe.max_pixels,
        draft=recipe.draft,
        tokens=recipe.tokens,
        scale=recipe.scale,
        ratio=recipe.ratio,
        hflip=recipe.hflip,
        seed=recipe.seed,
        model=Model(image_size=recipe.model.image_size, patch_size=recipe.model.patch_size),
        tokenizer=recipe.tokenizer,
    )


def _with(variant: Variant, made: dict[Recipe, tuple[Recipe, int]]) -> Variant:
    source, vocabulary = made.get(_token_recipe(variant.recipe)) or next(iter(made.values()))
    recipe = replace(variant.recipe, tokens=source.tokens, tokenizer=source.tokenizer)
    return replace(variant, recipe=recipe, vocabulary=vocabulary if recipe.reads_tokens else 0)


def _made(recipe: Recipe, seeds: int, folder: Path, runtime: Runtime) -> tuple[Recipe, int]:
    """The recipe with tokens or a tokenizer that exist, and the size of the vocabulary."""
    if recipe.tokens:
        return recipe, _vocabulary(Path(recipe.tokens), recipe)
    if recipe.varied:
        return _tokenizer(recipe, folder, runtime)
    done = folder / "seeds"  # the number of seeds whose images have tokens
    own = replace(recipe.tokenizer, path=recipe.tokenizer.path or str(folder / "tokenizer"))
    finished = int(done.read_text()) if done.exists() else 0
    for number in range(finished, seeds if recipe.max_images else 1):  # seeds draw different images
        again = replace(recipe, seed=recipe.seed + number, tokenizer=own if number else recipe.tokenizer)
        write_tokens(again, folder, runtime)
    replace_file(done, f"{max(finished, seeds)}\n")
    stored = replace(recipe, tokens=str(folder.absolute()), tokenizer=Tokenizer())
    return stored, _vocabulary(folder, stored)


def _vocabulary(folder: Path, recipe: Recipe) -> int:
    """That of a token store, which must have the student's view and grid."""
    from mapet.tokenizers.store import TokenStore
    from mapet.utils.view import CenterCropResize

    store, side = TokenStore.open(folder), recipe.model.image_size
    view = CenterCropResize((side, side), store.view.interpolation)
    store.check(source_name=recipe.data, image_ids=(), view=view, grid=recipe.grid)
    return store.vocabulary


def _tokenizer(recipe: Recipe, folder: Path, runtime: Runtime) -> tuple[Recipe, int]:
    """A tokenizer for online tokens: the named one, or one fitted in ``folder``."""
    from mapet.build.batches import choose_indices, require_fitting
    from mapet.data.dataset import open_dataset
    from mapet.data.unreadable import UnreadableImages
    from mapet.tokenizers.tokenizer import load_tokenizer

    named = Path(recipe.tokenizer.path or folder)
    if not named.exists():
        source = open_dataset(recipe.data, max_pixels=recipe.max_pixels, draft=recipe.draft)
        indices = choose_indices(source, recipe.max_images, recipe.seed)
        folder.parent.mkdir(parents=True, exist_ok=True)
        fit_codebook(recipe, folder, runtime, source, indices, UnreadableImages(len(indices), runtime.max_bad_fraction))
    tokenizer = load_tokenizer(named, teacher_weights=recipe.tokenizer.teacher_weights)
    require_fitting(tokenizer, named, recipe)
    ready = Tokenizer(path=str(named.absolute()), teacher_weights=recipe.tokenizer.teacher_weights)
    return replace(recipe, tokenizer=ready), tokenizer.vocabulary
