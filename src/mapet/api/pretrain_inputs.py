"""What a pre-training reads: images, and their tokens, ready in a store or made as the images come."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.api.tokenize import fit_codebook, tokenize
from mapet.api.training import pin, require_batch
from mapet.config.recipe import Recipe, Runtime
from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import Tensor

    from mapet.build.batches import PretrainBatches
    from mapet.data.dataset import ImageDataset
    from mapet.data.unreadable import UnreadableImages
    from mapet.engine.run import Run
    from mapet.tokenizers.tokenizer import Tokenizer


def validate(recipe: Recipe, runtime: Runtime) -> None:
    """Find what cannot work before anything is written.

    Raises:
        MapetError: images, tokens, a tokenizer or a device that cannot be had or do not fit.
    """
    from mapet.build.batches import chosen, crops, student_view, tokenized
    from mapet.data.dataset import open_dataset
    from mapet.data.decode import require_shown
    from mapet.data.unreadable import UnreadableImages
    from mapet.engine.distributed import pick_device
    from mapet.tokenizers.store import TokenStore
    from mapet.tokenizers.teacher import require_teacher

    source = open_dataset(recipe.data)
    require_batch(source, recipe.max_images, recipe.optimization.batch_size)
    require_shown(source, [student_view(recipe)], crops(recipe))
    pick_device(runtime.accelerator)
    if recipe.tokens:
        indices = chosen(source, recipe.max_images, recipe.seed)
        tokenized(
            source,
            indices,
            TokenStore.open(Path(recipe.tokens)),
            UnreadableImages(len(indices), runtime.max_bad_fraction),
            recipe,
        )
    elif not recipe.reads_tokens:
        return
    elif recipe.tokenizer.tokenizer:
        require_shown(source, [_tokenizer(Path(recipe.tokenizer.tokenizer), recipe).view], crops(recipe))
    elif runtime.processes > 1:
        raise MapetError(
            "Several processes need a ready tokenizer: run mapet tokenizer fit, then give its folder as --tokenizer; "
            "or mapet tokenize, then --tokens."
        )
    else:
        require_teacher(recipe.tokenizer.teacher)


def prepare_tokens(run: "Run", recipe: Recipe, runtime: Runtime, tell: Callable[[str], None]) -> None:
    """Make in the run's folder what the recipe does not name: its tokens, or with random crops a tokenizer alone."""
    own, done = run.folder / "tokenizer", run.folder / "tokens" / "complete"
    if recipe.tokens or recipe.tokenizer.tokenizer or not recipe.reads_tokens:
        return
    if recipe.varied and not own.exists():
        fit_codebook(recipe, own, runtime, *_images(run, recipe, runtime))
    if not recipe.varied and not done.exists():
        tokenize(recipe, run.folder / "tokens", runtime, say=tell)
        done.touch()


def pretrain_batches(
    run: "Run", recipe: Recipe, runtime: Runtime, fabric: "Fabric", tell: Callable[[str], None]
) -> "PretrainBatches":
    """The training stream of a run, its images and tokens pinned.

    Raises:
        MapetError: images or tokens that do not fit the recipe, or are others than when the run began.
    """
    from mapet.build.batches import NoTokens, Online, PretrainBatches, Stored, Tokens, crops, student_view, tokenized
    from mapet.data.loader import Shuffled
    from mapet.engine.distributed import pick_workers
    from mapet.tokenizers.store import TokenStore

    source, indices, bad = _images(run, recipe, runtime)
    view = second = student_view(recipe)
    tokens: Tokens = NoTokens()
    if recipe.reads_tokens and (recipe.tokenizer.tokenizer or recipe.varied):
        tokenizer = _tokenizer(Path(recipe.tokenizer.tokenizer or run.folder / "tokenizer"), recipe)
        tokens, second = Online(tokenizer, fabric.device), tokenizer.view
        tell(_tokenizer_line(tokenizer))
    elif recipe.reads_tokens or recipe.tokens:
        store = TokenStore.open(Path(recipe.tokens) if recipe.tokens else run.folder / "tokens")
        indices = tokenized(source, indices, store, bad, recipe)  # has compared the views
        tokens = Stored(store, source, indices) if recipe.reads_tokens else tokens
        if (made := store.extra.get("data")) not in (None, source.name):
            tell(f"note      the tokens were made from {made}: their images must be the same")
    if given := not recipe.reads_tokens and (recipe.tokens or recipe.tokenizer.tokenizer):
        tell(f"note      {recipe.objective.objective} reads no tokens: those of {given} are left alone")
    shuffled = Shuffled(
        source,
        view,
        second=second,
        crops=crops(recipe),
        batch_size=recipe.optimization.batch_size,
        epochs=recipe.optimization.epochs,
        seed=recipe.seed,
        bad=bad,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        workers=pick_workers(runtime.workers, fabric.device),
        memory=int(runtime.cache_gib * 2**30),
        indices=indices,
        device=fabric.device,
    )
    if fabric.is_global_zero:
        told = "other images or tokens: restore them, or begin a new run."
        pin(run, source, indices, {"tokenizer": tokens.tokenizer}, told, labels=False)
    return PretrainBatches(recipe, shuffled, tokens, fabric.device)


def _images(run: "Run", recipe: Recipe, runtime: Runtime) -> "tuple[ImageDataset, Tensor, UnreadableImages]":
    """The source, the places in it that the recipe takes, and the ledger of those that cannot be read."""
    from mapet.build.batches import chosen
    from mapet.data.dataset import open_dataset
    from mapet.data.unreadable import UnreadableImages

    source = open_dataset(recipe.data)
    indices = chosen(source, recipe.max_images, recipe.seed)
    return source, indices, UnreadableImages(len(indices), runtime.max_bad_fraction, run.unreadable_images)


def _tokenizer(folder: Path, recipe: Recipe) -> "Tokenizer":
    from mapet.build.batches import require_fitting
    from mapet.tokenizers.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder, teacher_weights=recipe.tokenizer.teacher_weights)
    require_fitting(tokenizer, folder, recipe)
    return tokenizer


def _tokenizer_line(tokenizer: "Tokenizer") -> str:
    (rows, columns), (height, width) = tokenizer.grid, tokenizer.view.size
    what = f"{tokenizer.kind}, {tokenizer.vocabulary:,} codes, {rows} × {columns} tokens of {height} × {width} pixels"
    return f"tokenizer {what}; images are tokenized as they come"
