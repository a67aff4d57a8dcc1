"""What a pre-training reads: images, and their tokens from a store or computed online."""

from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.api.batch_size import require_batch
from mapet.api.tokenize import fit_codebook, write_tokens
from mapet.config.recipe import Recipe
from mapet.config.runtime import Runtime
from mapet.utils.errors import MapetError
from mapet.utils.log import log

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mapet.build.batches import Images, PretrainBatches
    from mapet.data.dataset import ImageDataset
    from mapet.engine.run import Run
    from mapet.tokenizers.store import TokenStore
    from mapet.tokenizers.tokenizer import Tokenizer


def validate(recipe: Recipe, runtime: Runtime) -> None:
    """Check images, tokens, tokenizer and device before anything is written.

    Raises:
        MapetError: one that does not exist or does not fit.
    """
    from mapet.build.batches import open_images, random_crops, student_view, with_tokens
    from mapet.build.objectives import objective_type
    from mapet.data.decode import require_shown
    from mapet.engine.distributed import pick_device
    from mapet.tokenizers.store import TokenStore
    from mapet.tokenizers.teacher import require_teacher

    objective_type(recipe.objective.name)
    images = open_images(recipe.data, recipe.max_images, recipe.seed, runtime, None, recipe.max_pixels, recipe.draft)
    crops = random_crops(recipe)
    require_batch(images.source, recipe.max_images, recipe.optimization.batch_size)
    require_shown(images.source, [student_view(recipe)], crops)
    pick_device(runtime.accelerator)
    if recipe.tokens:
        with_tokens(images, TokenStore.open(Path(recipe.tokens)), recipe)
    elif not recipe.reads_tokens:
        return
    elif recipe.tokenizer.path:
        require_shown(images.source, [_tokenizer(Path(recipe.tokenizer.path), recipe).view], crops)
    elif runtime.processes > 1:
        raise MapetError(
            "Several processes need a ready tokenizer: run mapet tokenizer fit, then give its folder as --tokenizer; "
            "or mapet tokenize, then --tokens."
        )
    else:
        require_teacher(recipe.tokenizer.teacher)


def prepare_tokens(run: "Run", recipe: Recipe, runtime: Runtime) -> None:
    """Make in the run's folder what the recipe does not name: its tokens, or with random crops a tokenizer."""
    own, done = run.folder / "tokenizer", run.folder / "tokens" / "complete"
    if recipe.tokens or recipe.tokenizer.path or not recipe.reads_tokens:
        return
    if recipe.varied and not own.exists():
        fit_codebook(recipe, own, runtime, *_images(run, recipe, runtime))
    if not recipe.varied and not done.exists():
        write_tokens(recipe, run.folder / "tokens", runtime)
        done.touch()


def pretrain_batches(run: "Run", recipe: Recipe, runtime: Runtime, fabric: "Fabric") -> "PretrainBatches":
    """The training stream of a run.

    Raises:
        MapetError: images or tokens that do not fit the recipe.
    """
    from mapet.build.batches import (
        NoTokens,
        Online,
        PretrainBatches,
        Stored,
        Tokens,
        random_crops,
        shuffled_images,
        student_view,
        with_tokens,
    )
    from mapet.tokenizers.store import TokenStore

    images, view = _images(run, recipe, runtime), student_view(recipe)
    tokens: Tokens = NoTokens()
    second = view
    if recipe.reads_tokens and (recipe.tokenizer.path or recipe.varied):
        tokenizer = _tokenizer(Path(recipe.tokenizer.path or run.folder / "tokenizer"), recipe)
        tokens, second = Online(tokenizer, fabric.device), tokenizer.view
        log.info(f"tokenizer {_tokenizer_line(tokenizer)}")
    elif recipe.reads_tokens or recipe.tokens:
        store = TokenStore.open(Path(recipe.tokens) if recipe.tokens else run.folder / "tokens")
        images = with_tokens(images, store, recipe)  # has compared the views
        tokens = Stored(store, images.source, images.indices) if recipe.reads_tokens else tokens
        if store.extra.get("data") not in (None, images.source.name):
            log.info(f"note      {_other_source(store, images.source)}")
    if given := not recipe.reads_tokens and (recipe.tokens or recipe.tokenizer.path):
        log.info(f"note      {recipe.objective.name} reads no tokens: those of {given} are not used")
    shuffled = shuffled_images(
        images,
        (view, second),
        random_crops(recipe),
        batch_size=recipe.optimization.batch_size,
        epochs=recipe.optimization.epochs,
        seed=recipe.seed,
        runtime=runtime,
        fabric=fabric,
    )
    return PretrainBatches(recipe, shuffled, tokens, fabric.device)


def stored_tokens(batches: "PretrainBatches") -> dict[str, str]:
    """The hash of the tokens of some images, if they come from a store."""
    from mapet.build.batches import Stored

    if not isinstance(batches.tokens, Stored):
        return {}
    some = batches.tokens.some(batches.shuffled).numpy()
    return {"tokens": blake2b(some.astype("<u2").tobytes(), digest_size=16).hexdigest()}


def _other_source(store: "TokenStore", source: "ImageDataset") -> str:
    """What is known of images that the tokens were not made from."""
    from mapet.build.known_ids import made_from, other_contents, recorded

    wrong = other_contents(source, store) if recorded(store) else "their contents are not recorded"
    known = f", but {wrong}" if wrong else "; a sample of their contents agrees"
    return f"the tokens were made from {made_from(store)}: their images must be the same{known}"


def _images(run: "Run", recipe: Recipe, runtime: Runtime) -> "Images":
    """The recipe's images; unreadable ones are listed in the run's folder."""
    from mapet.build.batches import open_images

    r = recipe
    return open_images(r.data, r.max_images, r.seed, runtime, run.unreadable_images, r.max_pixels, r.draft)


def run_tokenizer(run: "Run", recipe: Recipe) -> "Tokenizer":
    """The tokenizer whose tokens a run predicts.

    Raises:
        MapetError: it is not where the run's tokens are.
    """
    places = (recipe.tokenizer.path, run.folder / "tokens" / "tokenizer", run.folder / "tokenizer")
    stores = (Path(recipe.tokens) / "tokenizer",) if recipe.tokens else ()
    for folder in (Path(place) for place in (*places, *stores) if place):
        if (folder / "tokenizer.json").is_file():
            return _tokenizer(folder, recipe)
    raise MapetError(f"The tokenizer of {run.folder} is missing: its tokens were made elsewhere.")


def _tokenizer(folder: Path, recipe: Recipe) -> "Tokenizer":
    from mapet.build.batches import require_fitting
    from mapet.tokenizers.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder, teacher_weights=recipe.tokenizer.teacher_weights)
    require_fitting(tokenizer, folder, recipe)
    return tokenizer


def _tokenizer_line(tokenizer: "Tokenizer") -> str:
    (rows, columns), (height, width) = tokenizer.grid, tokenizer.view.size
    what = f"{tokenizer.kind}, {tokenizer.vocabulary:,} codes, {rows} × {columns} tokens of {height} × {width} pixels"
    return f"{what}; online"
