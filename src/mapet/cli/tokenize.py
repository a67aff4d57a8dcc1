"""``mapet tokenize``: one visual token per patch for every picture, on disk."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.cli.options import parse, say
from mapet.errors import MapetError
from mapet.recipe import Machine, Model, Recipe, Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from mapet.data.bad import BadPictures
    from mapet.data.source import Source
    from mapet.tokenizers.codebook import Codebook
    from mapet.tokenizers.store import TokenStore
    from mapet.view import View

BATCH = 64  # pictures that the teacher sees at a time


@dataclass(frozen=True)
class Options:
    """Options of ``mapet tokenize``."""

    data: str = ""
    """A folder of pictures, nested in any way, or cifar10."""
    out: str = ""
    """Folder for the tokens; a started one is continued."""
    codebook: str | None = None
    """Folder of a codebook fitted before; None: fit one into OUT/codebook."""
    image_size: int = 224
    """Side of the student's pictures in pixels."""
    patch_size: int = 16
    """Side of the student's patches in pixels."""
    limit: int | None = None
    """Use only so many of the pictures, chosen at random; None: all."""
    seed: int = 0
    """Of the sample and of k-means."""
    accelerator: str = "auto"
    """auto, cpu, cuda or mps."""
    workers: int | None = None
    """Processes that decode pictures; None: up to 8 beside an accelerator, none on a CPU."""
    max_bad: float = 0.01
    """Largest share of pictures that may be unreadable."""
    tokenizer: Tokenizer = field(default_factory=Tokenizer)


def command(arguments: list[str]) -> int:
    """Parse, tokenize, tell what came out."""
    o = parse(Options(), arguments, "tokenize", "Write one visual token per patch for every picture.")
    if not o.data or not o.out:
        raise MapetError("mapet tokenize needs --data (a folder of pictures, or cifar10) and --out (a folder).")
    recipe = Recipe(
        data=o.data,
        limit=o.limit,
        seed=o.seed,
        model=Model(image_size=o.image_size, patch_size=o.patch_size),
        tokenizer=o.tokenizer,
    )
    machine = Machine(accelerator=o.accelerator, workers=o.workers, max_bad=o.max_bad)
    store = tokenize(recipe, Path(o.out), machine, codebook=Path(o.codebook) if o.codebook else None)
    say(f"{len(store):,} pictures × {store.grid[0] * store.grid[1]} tokens in {o.out}")
    return 0


def tokenize(
    recipe: Recipe,
    out: Path,
    machine: Machine,
    *,
    codebook: Path | None = None,
    say: Callable[[str], None] = say,
) -> "TokenStore":
    """Write the tokens of the recipe's pictures into the folder ``out``, or continue there.

    The codebook is read from ``codebook``, or fitted into ``out/codebook``. Pictures that cannot be read are listed in
    ``out/bad-pictures.txt``.

    Raises:
        MapetError: no pictures, a teacher that cannot give the recipe's grid, too many bad pictures, other tokens.
    """
    from mapet.data.bad import BadPictures
    from mapet.data.source import open_source
    from mapet.engine.world import pick_device
    from mapet.feed import chosen
    from mapet.tokenizers.codebook import Codebook
    from mapet.tokenizers.store import TokenStore

    source, device = open_source(recipe.data), pick_device(machine.accelerator)
    places = chosen(source, recipe.limit, recipe.seed)
    own = out / "codebook"
    out.mkdir(parents=True, exist_ok=True)
    bad = BadPictures(len(places), machine.max_bad, out / "bad-pictures.txt")
    if codebook is None and not own.exists():
        fit_codebook(recipe, own, machine, source, places, bad)
    weights = recipe.tokenizer.teacher_weights
    book = Codebook.load(codebook or own, teacher_weights=Path(weights) if weights else None).to(device)
    _require_fitting(book, recipe, codebook or own, given=codebook is not None)
    say(describe(book))
    store = TokenStore.create(
        out,
        view=book.view,
        grid=book.grid,
        vocabulary=book.vocabulary,
        tokenizer=book.hash,
        extra={"data": source.name},
    )
    encode(book, store, source, places, machine, bad)
    return store


def fit_codebook(
    recipe: Recipe, folder: Path, machine: Machine, source: "Source", places: "Tensor", bad: "BadPictures"
) -> None:
    """Fit the recipe's codebook on its pictures and save it in ``folder``."""
    import torch

    from mapet.engine.screen import Meter
    from mapet.engine.world import pick_device
    from mapet.hashing import hashed
    from mapet.tokenizers.codebook import Codebook
    from mapet.tokenizers.teacher import Teacher

    t, device = recipe.tokenizer, pick_device(machine.accelerator)
    weights = Path(t.teacher_weights) if t.teacher_weights else None
    teacher = Teacher(t.teacher, recipe.grid, stage=t.teacher_stage, weights=weights).to(device)
    if t.fit_pictures is not None:
        places = places[hashed(recipe.seed, 1, places).argsort(stable=True)[: t.fit_pictures]]
    seen = 0

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        nonlocal seen
        for images, index in decoded(source, teacher.view, places, machine, bad):
            yield images, index
            seen += len(index)
            if meter.due(seen):
                meter.update(seen)

    with Meter("codebook", len(places)) as meter:
        book = Codebook.fit(
            teacher,
            batches(),
            codes=t.codes,
            samples=t.samples,
            iterations=t.iterations,
            restarts=t.restarts,
            metric=t.metric,
            seed=recipe.seed,
            device=device,
        )
    book.save(folder)


def encode(
    book: "Codebook", store: "TokenStore", source: "Source", places: "Tensor", machine: Machine, bad: "BadPictures"
) -> None:
    """Append the tokens of all pictures at ``places`` that the store lacks."""
    from mapet.data.augment import to_float
    from mapet.engine.screen import Meter

    left = [place for place in places.tolist() if source.key(place) not in store]
    done = len(places) - len(left)
    with Meter("tokens", len(places), done) as meter:
        for images, index in decoded(source, book.view, left, machine, bad):
            tokens = book.encode(to_float(images, book.centroids.device))
            store.append([source.key(place) for place in index.tolist()], tokens.cpu())
            done += len(index)
            if meter.due(done):
                meter.update(done)


def decoded(
    source: "Source", view: "View", places: "Sequence[int] | Tensor", machine: Machine, bad: "BadPictures"
) -> "Iterator[tuple[Tensor, Tensor]]":
    """(images (B, 3, H, W) uint8, places (B,)) of all good pictures at ``places``, in batches for the teacher."""
    from mapet.data.loader import in_order
    from mapet.engine.world import pick_device, pick_workers

    workers = pick_workers(machine.workers, pick_device(machine.accelerator))
    for batch in in_order(source, view, BATCH, workers=workers, bad=bad, places=[int(place) for place in places]):
        yield batch.images, batch.index


def describe(book: "Codebook") -> str:
    """One line about a codebook."""
    rows, columns = book.grid
    even = f"perplexity {book.provenance['perplexity']:.0f}"
    return f"codebook  {book.vocabulary} codes ({even}) over {book.teacher.name} at {rows} × {columns} patches"


def _require_fitting(book: "Codebook", recipe: Recipe, folder: Path, given: bool) -> None:
    """Refuse a codebook that is not what the settings ask for: of one that was named, only the grid is asked."""
    t = recipe.tokenizer
    asked = {"grid": recipe.grid, "codes": t.codes, "teacher": t.teacher, "metric": t.metric}
    found = {"grid": book.grid, "codes": book.vocabulary, "teacher": book.teacher.name, "metric": book.metric}
    for name in ("grid",) if given else asked:
        if asked[name] != found[name]:
            raise MapetError(
                f"The codebook in {folder} has {name} {found[name]}, and {asked[name]} is asked for: "
                "give another --out, or the settings that it was made with."
            )
