"""The tokens of a comparison: made once, and read by all its runs."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

from mapet.api.compare.plan import Plan, Variant
from mapet.api.tokenize import fit_codebook, tokenize
from mapet.config.recipe import Model, Recipe, Runtime, Tokenizer
from mapet.utils.io import replace_file

VIEWED = ("image_size", "patch_size", "scale", "ratio", "hflip")
DECIDING = {name.replace("_", "-") for name in (*VIEWED, *(one.name for one in fields(Tokenizer)))}


def with_tokens(
    plan: Plan, arms: Sequence[Variant], out: Path, runtime: Runtime, say: Callable[[str], None]
) -> list[Variant]:
    """The arms, their recipes with ready tokens (under random crops, a ready tokenizer), made in ``out`` if need be.

    An objective that reads no tokens is given those of the others too: they tell which images cannot be read, so that
    all objectives see the same ones in the same sequence.

    Raises:
        MapetError: tokens that do not fit the student, or cannot be made.
    """
    readers = {_asked(arm.recipe): arm for arm in reversed(arms) if arm.recipe.reads_tokens and _trained(arm, plan)}
    limits = [arm.recipe.max_images for arm in arms]
    most = max((limit for limit in limits if limit is not None), default=None) if None not in limits else None
    made = {}
    for asked, arm in reversed(readers.items()):
        folder = out / ("tokenizer" if asked.varied else "tokens") / (_name(arm) if len(readers) > 1 else "")
        made[asked] = _made(replace(asked, max_images=most), plan.seeds, folder, runtime, say)
    return [_placed(arm, made) if made and _trained(arm, plan) else arm for arm in arms]


def _name(arm: Variant) -> str:
    """What of an arm's setting decides about its tokens, as a folder's name."""
    return ", ".join(f"{name}={text}" for name, text in arm.label if name in DECIDING).replace("/", "_")


def _trained(arm: Variant, plan: Plan) -> bool:
    return arm.method in plan.objectives


def _asked(recipe: Recipe) -> Recipe:
    """What of a recipe decides about the tokens of an image."""
    return Recipe(
        data=recipe.data,
        tokens=recipe.tokens,
        scale=recipe.scale,
        ratio=recipe.ratio,
        hflip=recipe.hflip,
        seed=recipe.seed,
        model=Model(image_size=recipe.model.image_size, patch_size=recipe.model.patch_size),
        tokenizer=recipe.tokenizer,
    )


def _placed(arm: Variant, made: dict[Recipe, tuple[Recipe, int]]) -> Variant:
    source, vocabulary = made.get(_asked(arm.recipe)) or next(iter(made.values()))
    recipe = replace(arm.recipe, tokens=source.tokens, tokenizer=source.tokenizer)
    return replace(arm, recipe=recipe, vocabulary=vocabulary if recipe.reads_tokens else 0)


def _made(asked: Recipe, seeds: int, folder: Path, runtime: Runtime, say: Callable[[str], None]) -> tuple[Recipe, int]:
    """The recipe with ready tokens or a ready tokenizer, and the vocabulary."""
    if asked.tokens:
        return asked, _vocabulary(Path(asked.tokens), asked)
    if asked.varied:
        return _tokenizer(asked, folder, runtime)
    done = folder / "seeds"  # whose images have tokens: as many as the comparison had
    own = replace(asked.tokenizer, tokenizer=asked.tokenizer.tokenizer or str(folder / "tokenizer"))
    known = int(done.read_text()) if done.exists() else 0
    for number in range(known, seeds if asked.max_images else 1):  # each seed takes images of its own
        again = replace(asked, seed=asked.seed + number, tokenizer=own if number else asked.tokenizer)
        tokenize(again, folder, runtime, say=say)
    replace_file(done, f"{max(known, seeds)}\n")
    ready = replace(asked, tokens=str(folder.absolute()), tokenizer=Tokenizer())
    return ready, _vocabulary(folder, ready)


def _vocabulary(folder: Path, recipe: Recipe) -> int:
    """That of a store, which must have the student's view and grid."""
    from mapet.tokenizers.store import TokenStore
    from mapet.utils.view import CenterCropResize

    store, side = TokenStore.open(folder), recipe.model.image_size
    view = CenterCropResize((side, side), store.view.interpolation)
    store.check(source_name=recipe.data, image_ids=(), view=view, grid=recipe.grid)
    return store.vocabulary


def _tokenizer(asked: Recipe, folder: Path, runtime: Runtime) -> tuple[Recipe, int]:
    """A tokenizer that makes tokens as the images come: the named one, or one that is fitted in ``folder``."""
    from mapet.build.batches import chosen, require_fitting
    from mapet.data.dataset import open_dataset
    from mapet.data.unreadable import UnreadableImages
    from mapet.tokenizers.tokenizer import load_tokenizer

    named = Path(asked.tokenizer.tokenizer or folder)
    if not named.exists():
        source = open_dataset(asked.data)
        indices = chosen(source, asked.max_images, asked.seed)
        folder.parent.mkdir(parents=True, exist_ok=True)
        fit_codebook(asked, folder, runtime, source, indices, UnreadableImages(len(indices), runtime.max_bad_fraction))
    tokenizer = load_tokenizer(named, teacher_weights=asked.tokenizer.teacher_weights)
    require_fitting(tokenizer, named, asked)
    ready = Tokenizer(tokenizer=str(named.absolute()), teacher_weights=asked.tokenizer.teacher_weights)
    return replace(asked, tokenizer=ready), tokenizer.vocabulary
