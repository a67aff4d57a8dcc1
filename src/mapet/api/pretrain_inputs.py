"""What a pre-training reads: pictures, and their tokens, ready in a store or made as the pictures come."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.api.training import pin, require_batch
from mapet.cli.tokenize import fit_codebook, tokenize
from mapet.config.recipe import Machine, Recipe
from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import Tensor

    from mapet.build.batches import Feed
    from mapet.data.dataset import Source
    from mapet.data.unreadable import BadPictures
    from mapet.engine.run import Run
    from mapet.tokenizers.tokenizer import Tokenizer


def look_ahead(recipe: Recipe, machine: Machine) -> None:
    """Find what cannot work before anything is written.

    Raises:
        MapetError: pictures, tokens, a tokenizer or a device that cannot be had or do not fit.
    """
    from mapet.build.batches import chosen, crops, student_view, tokenized
    from mapet.data.dataset import open_source
    from mapet.data.decode import require_shown
    from mapet.data.unreadable import BadPictures
    from mapet.engine.distributed import pick_device
    from mapet.tokenizers.store import TokenStore
    from mapet.tokenizers.teacher import require_teacher

    source = open_source(recipe.data)
    require_batch(source, recipe.limit, recipe.optimization.batch_size)
    require_shown(source, [student_view(recipe)], crops(recipe))
    pick_device(machine.accelerator)
    if recipe.tokens:
        places = chosen(source, recipe.limit, recipe.seed)
        tokenized(
            source, places, TokenStore.open(Path(recipe.tokens)), BadPictures(len(places), machine.max_bad), recipe
        )
    elif not recipe.reads_tokens:
        return
    elif recipe.tokenizer.tokenizer:
        require_shown(source, [_tokenizer(Path(recipe.tokenizer.tokenizer), recipe).view], crops(recipe))
    elif machine.processes > 1:
        raise MapetError(
            "Several processes need a ready tokenizer: run mapet tokenizer fit, then give its folder as --tokenizer; "
            "or mapet tokenize, then --tokens."
        )
    else:
        require_teacher(recipe.tokenizer.teacher)


def make_ready(run: "Run", recipe: Recipe, machine: Machine, tell: Callable[[str], None]) -> None:
    """Make in the run's folder what the recipe does not name: its tokens, or with random crops a tokenizer alone."""
    own, done = run.folder / "tokenizer", run.folder / "tokens" / "complete"
    if recipe.tokens or recipe.tokenizer.tokenizer or not recipe.reads_tokens:
        return
    if recipe.varied and not own.exists():
        fit_codebook(recipe, own, machine, *_pictures(run, recipe, machine))
    if not recipe.varied and not done.exists():
        tokenize(recipe, run.folder / "tokens", machine, say=tell)
        done.touch()


def feed(run: "Run", recipe: Recipe, machine: Machine, fabric: "Fabric", tell: Callable[[str], None]) -> "Feed":
    """The training stream of a run, its pictures and tokens pinned.

    Raises:
        MapetError: pictures or tokens that do not fit the recipe, or are others than when the run began.
    """
    from mapet.build.batches import Feed, NoTokens, Online, Stored, Tokens, crops, student_view, tokenized
    from mapet.data.loader import Shuffled
    from mapet.engine.distributed import pick_workers
    from mapet.tokenizers.store import TokenStore

    source, places, bad = _pictures(run, recipe, machine)
    view = second = student_view(recipe)
    tokens: Tokens = NoTokens()
    if recipe.reads_tokens and (recipe.tokenizer.tokenizer or recipe.varied):
        tokenizer = _tokenizer(Path(recipe.tokenizer.tokenizer or run.folder / "tokenizer"), recipe)
        tokens, second = Online(tokenizer, fabric.device), tokenizer.view
        tell(_tokenizer_line(tokenizer))
    elif recipe.reads_tokens or recipe.tokens:
        store = TokenStore.open(Path(recipe.tokens) if recipe.tokens else run.folder / "tokens")
        places = tokenized(source, places, store, bad, recipe)  # has compared the views
        tokens = Stored(store, source, places) if recipe.reads_tokens else tokens
        if (made := store.extra.get("data")) not in (None, source.name):
            tell(f"note      the tokens were made from {made}: their pictures must be the same")
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
        world=fabric.world_size,
        workers=pick_workers(machine.workers, fabric.device),
        memory=int(machine.memory * 2**30),
        places=places,
        device=fabric.device,
    )
    if fabric.is_global_zero:
        told = "other pictures or tokens: restore them, or begin a new run."
        pin(run, source, places, {"tokenizer": tokens.tokenizer}, told, labels=False)
    return Feed(recipe, shuffled, tokens, fabric.device)


def _pictures(run: "Run", recipe: Recipe, machine: Machine) -> "tuple[Source, Tensor, BadPictures]":
    """The source, the places in it that the recipe takes, and the ledger of those that cannot be read."""
    from mapet.build.batches import chosen
    from mapet.data.dataset import open_source
    from mapet.data.unreadable import BadPictures

    source = open_source(recipe.data)
    places = chosen(source, recipe.limit, recipe.seed)
    return source, places, BadPictures(len(places), machine.max_bad, run.bad_pictures)


def _tokenizer(folder: Path, recipe: Recipe) -> "Tokenizer":
    from mapet.build.batches import require_fitting
    from mapet.tokenizers.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder, teacher_weights=recipe.tokenizer.teacher_weights)
    require_fitting(tokenizer, folder, recipe)
    return tokenizer


def _tokenizer_line(tokenizer: "Tokenizer") -> str:
    (rows, columns), (height, width) = tokenizer.grid, tokenizer.view.size
    what = f"{tokenizer.kind}, {tokenizer.vocabulary:,} codes, {rows} × {columns} tokens of {height} × {width} pixels"
    return f"tokenizer {what}; pictures are tokenized as they come"
