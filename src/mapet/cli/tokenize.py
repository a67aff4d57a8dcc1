"""``mapet tokenize``: one visual token per patch for every picture, on disk."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.api.images import BATCH, Pictures, require_apart, require_free
from mapet.cli.options import parse, positional, say, silent
from mapet.cli.tokenizer.fit import describe, fit, fitting
from mapet.config.recipe import Machine, Model, Recipe, Tokenizer, diff
from mapet.engine.stages import Stages
from mapet.utils.errors import MapetError
from mapet.utils.process_group import ALONE, Crew

if TYPE_CHECKING:
    from torch import Tensor

    from mapet.data.dataset import Source
    from mapet.data.unreadable import BadPictures
    from mapet.tokenizers.store import TokenStore
    from mapet.tokenizers.tokenizer import Tokenizer as AnyTokenizer
    from mapet.utils.lock import Lock

LOOKED_UP = 1 << 16  # keys that are looked for in the store at a time
ABOUT = """Write one visual token per patch for every picture.

The tokenizer is a ready one (--tokenizer FOLDER), or a codebook is fitted first.

A call that was stopped at any moment goes on when it is given again.

Under torchrun each process tokenizes its share of the pictures:

torchrun --nproc-per-node 8 -m mapet tokenize DATA --out FOLDER"""


@dataclass(frozen=True)
class Options:
    """Options of ``mapet tokenize DATA``."""

    data: str = ""
    """A folder of pictures, nested in any way or packed by mapet pack, or cifar10; the same as DATA."""
    out: str = ""
    """Folder for the tokens; a started one is continued. A tokenizer that is fitted lies in OUT/tokenizer."""
    image_size: int = 224
    """Side of the student's pictures in pixels."""
    patch_size: int = 16
    """Side of the student's patches in pixels."""
    limit: int | None = None
    """Use only so many of the pictures, chosen at random; None: all."""
    seed: int = 0
    """Of the sample and of k-means."""
    batch_size: int = BATCH
    """Pictures that the tokenizer sees at a time, in each process."""
    accelerator: str = "auto"
    """auto, cpu, cuda or mps."""
    workers: int | None = None
    """Processes that decode pictures; None: up to 8 beside an accelerator, none on a CPU."""
    max_bad: float = 0.01
    """Largest share of pictures that may be unreadable."""
    tokenizer: Tokenizer = field(default_factory=Tokenizer)


def command(arguments: list[str]) -> int:
    """Parse, tokenize, tell what came out."""
    from mapet.engine.distributed import crew

    words, rest = positional(arguments, Options())
    o = parse(Options(), rest, "tokenize DATA", ABOUT)
    data, *more = [*words, *([o.data] if o.data else [])] or [""]
    if not data or not o.out or more:
        raise MapetError(
            "mapet tokenize needs pictures (a folder, or cifar10) and a folder: mapet tokenize DATA --out FOLDER."
        )
    if o.batch_size < 1:
        raise MapetError("--batch-size does not fit: it must be at least 1.")
    require_one_way(o.tokenizer, Tokenizer(), tokenizer=o.tokenizer.tokenizer)
    require_apart(o.out, data, o.tokenizer)
    model = Model(image_size=o.image_size, patch_size=o.patch_size)
    recipe = Recipe(data=data, limit=o.limit, seed=o.seed, model=model, tokenizer=o.tokenizer)
    machine = Machine(accelerator=o.accelerator, workers=o.workers, max_bad=o.max_bad)
    with crew(o.accelerator) as together:
        tell = say if together.leads else silent
        try:
            store = tokenize(recipe, Path(o.out), machine, say=tell, crew=together, batch_size=o.batch_size)
        except KeyboardInterrupt:
            tell("stopped   what was written stays; go on with: the same command")
            return 130
        tell(f"{len(store):,} pictures × {store.grid[0] * store.grid[1]} tokens in {o.out}")
    return 0


def require_one_way(asked: Tokenizer, default: Tokenizer, **folders: str | None) -> None:
    """Refuse settings of a fit beside what is ready, on which they would have no effect.

    Args:
        asked: what was asked for.
        default: what holds without a word.
        folders: what is ready, by the option that names it; nothing is where none is given.
    """
    ready = next((option for option, folder in folders.items() if folder), None)
    own = {"tokenizer", "teacher_weights"} if ready == "tokenizer" else {"tokenizer"}  # its teacher may need them
    if ready and (names := [name for name in diff(asked, default) if name not in own]):
        option = names[0].replace("_", "-")
        raise MapetError(
            f"--{option} is for a codebook that is fitted, not for what --{ready} names: leave one of them out."
        )


def tokenize(
    recipe: Recipe,
    out: Path,
    machine: Machine,
    *,
    say: Callable[[str], None] = say,
    crew: Crew = ALONE,
    batch_size: int = BATCH,
) -> "TokenStore":
    """Write the tokens of the recipe's pictures into the folder ``out``, or continue there.

    The tokenizer is the recipe's, or a codebook that is fitted into ``out/tokenizer``. Pictures that cannot be read are
    listed in ``out/bad-pictures.txt``.

    Args:
        recipe: names pictures and tokenizer.
        out: may hold what an interrupted call left.
        machine: how pictures are read.
        say: is told each line for the screen.
        crew: the processes, each of which calls this.
        batch_size: pictures that the tokenizer sees at a time.

    Raises:
        MapetError: no pictures, a teacher that cannot give the recipe's grid, too many bad pictures, other tokens.
    """
    from mapet.engine.distributed import pick_device
    from mapet.engine.progress import clock
    from mapet.tokenizers.store import WRITING, TokenStore
    from mapet.utils.lock import Lock

    pictures = Pictures.of(recipe, machine, out, crew, batch_size)
    if crew.leads:
        require_free(out)
    out.mkdir(parents=True, exist_ok=True)
    with Lock(out, WRITING) if crew.leads else nullcontext() as lock, Stages(shown=crew.leads) as stages:
        tokenizer = _tokenizer(recipe, out, pictures, say)
        store = _opened(out, tokenizer, pictures, lock)
        count = encode(tokenizer.to(pick_device(machine.accelerator)), store, pictures, stages)
    if seconds := stages.seconds["tokens"]:
        say(f"tokens    {count:,} pictures in {clock(seconds)}, {count / seconds:,.0f} pictures/s")
    if note := pictures.bad.note():
        say(f"note      {note}")
    return TokenStore.open(out)


def _tokenizer(recipe: Recipe, out: Path, pictures: Pictures, say: Callable[[str], None]) -> "AnyTokenizer":
    """The recipe's tokenizer, or the codebook in ``out``, which is fitted there if need be."""
    from mapet.data.decode import require_shown
    from mapet.tokenizers.tokenizer import load_tokenizer

    own, named = out / "tokenizer", recipe.tokenizer.tokenizer
    if not named and not _there(own, pictures.crew):
        fit(recipe, pictures, own, grid=recipe.grid, say=say)
    folder = Path(named or own)
    tokenizer = load_tokenizer(folder, teacher_weights=recipe.tokenizer.teacher_weights)
    _require_fitting(tokenizer, folder, recipe)
    require_shown(pictures.source, [tokenizer.view])
    say(_line(tokenizer))
    return tokenizer


def fit_codebook(
    recipe: Recipe, folder: Path, machine: Machine, source: "Source", places: "Tensor", bad: "BadPictures"
) -> None:
    """Fit the recipe's codebook on its pictures and save it in ``folder``, by one process."""
    fit(recipe, Pictures(source, places, machine, bad), folder, grid=recipe.grid)


def encode(tokenizer: "AnyTokenizer", store: "TokenStore", pictures: Pictures, stages: Stages) -> int:
    """Write the tokens of all pictures that the store lacks, and give their number over all processes.

    Several processes append each to a part of its own, and the first brings the parts together in the end.
    """
    import torch

    from mapet.data.augment import to_float
    from mapet.engine.distributed import pick_device
    from mapet.tokenizers.parts import merge, part_of

    crew, source, device = pictures.crew, pictures.source, pick_device(pictures.machine.accelerator)
    mine = crew.share(_lacking(store, pictures))
    target, done = part_of(store, crew.rank) if crew.count > 1 else store, 0
    for images, index in pictures.decoded(tokenizer.view, mine):
        tokens = tokenizer.encode(to_float(images, device))
        target.append([source.key(place) for place in index.tolist()], tokens)
        done += len(index)
        stages("tokens", done, len(mine))
    if target is not store:
        target.release()
    pictures.settle()
    if crew.leads:
        merge(store)
        pictures.bad.forget(store.__contains__)
        _require_complete(store, pictures)
    return int(crew.sum(torch.tensor([done])))


def _opened(out: Path, tokenizer: "AnyTokenizer", pictures: Pictures, lock: "Lock | None") -> "TokenStore":
    """The new store, or this tokenizer's that was begun, with what an interrupted call left in parts.

    The first process writes there, by the folder's ``lock``.
    """
    from mapet.tokenizers.parts import merge
    from mapet.tokenizers.store import TokenStore

    if pictures.crew.leads:
        store = TokenStore.create(
            out,
            view=tokenizer.view,
            grid=tokenizer.grid,
            vocabulary=tokenizer.vocabulary,
            tokenizer=tokenizer.hash,
            extra={"data": pictures.source.name},
        )
        store.reserve(lock)
        merge(store)
    pictures.settle()
    return store if pictures.crew.leads else TokenStore.open(out)


def _lacking(store: "TokenStore", pictures: Pictures) -> "Tensor":
    """The places of the pictures without tokens."""
    import torch

    key = pictures.source.key
    parts = [
        part[torch.from_numpy(store.missing([key(place) for place in part.tolist()]))]
        for part in torch.split(pictures.places, LOOKED_UP)
    ]
    return torch.cat(parts)


def _require_complete(store: "TokenStore", pictures: Pictures) -> None:
    """Every picture has its tokens or is listed as bad; processes that saw different stores would leave holes."""
    lacking = _lacking(store, pictures).tolist()
    if left := [place for place in lacking if pictures.source.key(place) not in pictures.bad]:
        raise MapetError(
            f'{len(left)} pictures have no tokens yet, for instance "{pictures.source.key(left[0])}": the processes '
            "did not see the same folder. Give the same command again."
        )


def _there(folder: Path, crew: Crew) -> bool:
    """Whether the first process finds a tokenizer in ``folder``; what it finds holds for all."""
    import torch

    from mapet.tokenizers.tokenizer import FIELDS

    return bool(crew.sum(torch.tensor([crew.leads and (folder / FIELDS).exists()]).long()))


def _line(tokenizer: "AnyTokenizer") -> str:
    """One line about a tokenizer of any kind."""
    from mapet.tokenizers.codebook import Codebook

    if isinstance(tokenizer, Codebook):
        return describe(tokenizer)
    (rows, columns), kind = tokenizer.grid, tokenizer.kind
    return f"tokenizer {kind}, {tokenizer.vocabulary} codes at {rows} × {columns} patches"


def _require_fitting(tokenizer: "AnyTokenizer", folder: Path, recipe: Recipe) -> None:
    """Refuse a tokenizer that is not what the settings ask for; of one that was named, only grid and crop are asked."""
    from dataclasses import asdict

    from mapet.build.batches import require_fitting
    from mapet.tokenizers.codebook import Codebook
    from mapet.tokenizers.timm_backbone import exported

    if recipe.tokenizer.tokenizer or not isinstance(tokenizer, Codebook):
        require_fitting(tokenizer, folder, recipe)
        return
    t, teacher, story = recipe.tokenizer, tokenizer.teacher, tokenizer.provenance
    asked = {"grid": recipe.grid, "teacher": str(exported(t.teacher) or t.teacher), **asdict(fitting(recipe))}
    asked |= {"teacher_stage": t.teacher_stage, "teacher_output": t.teacher_output, "fit_pictures": t.fit_pictures}
    found = {**story, "grid": tokenizer.grid, "teacher": teacher.source, "samples": story.get("asked_samples")}
    found["teacher_stage"] = None if t.teacher_stage is None else teacher.stage
    found["teacher_output"] = teacher.describe().get("output", "stage")
    for name, value in asked.items():
        if found.get(name) != value:
            raise MapetError(
                f"The tokenizer in {folder} has {name} {found.get(name)}, and {value} is asked for: "
                "give another --out, or the settings that it was made with."
            )
