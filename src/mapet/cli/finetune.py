"""``mapet finetune``: a pre-trained encoder and labelled images in, a classifier and its accuracy out."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.api.pretrain import is_file
from mapet.api.training import reopened, require_unchanged
from mapet.cli.options import parse, positional, take
from mapet.cli.pretrain import again, stoppable
from mapet.config.finetune import FinetuneRecipe
from mapet.config.recipe import Runtime, read
from mapet.utils.errors import MapetError
from mapet.utils.owned import require_apart

if TYPE_CHECKING:
    pass
from mapet.api.finetune import _anchored, finetune, named_tuning, resume

ABOUT = """Train a classifier on labelled images, starting from FROM.

FROM is a run, an export folder, an official-format checkpoint, or random.

--recipe NAME (or FILE.yaml) sets the defaults of all other options.

--resume OUT goes on with an interrupted fine-tuning."""


@dataclass(frozen=True)
class Options:
    """Options of ``mapet finetune FROM``."""

    out: str = ""
    """Folder for the run; must be empty or absent."""
    overwrite: bool = False
    """Replace the run that is in the folder once this one trains; nothing but files of mapet is deleted."""
    evaluate_every: int = 0
    """Test every so many epochs, beside the end; 0: at the end alone."""
    tuning: FinetuneRecipe = field(default_factory=FinetuneRecipe)
    runtime: Runtime = field(default_factory=Runtime)

    def __post_init__(self) -> None:
        if self.evaluate_every < 0:
            raise MapetError("--evaluate-every does not fit: it must be at least 0.")


def command(arguments: list[str]) -> int:
    """Parse, train or go on, tell what came out."""
    folder, arguments = take(arguments, "--resume")
    if folder is not None:
        o = _resumed(folder, arguments)
        every, runtime = o.evaluate_every, o.runtime
        return stoppable(
            lambda: resume(folder, runtime, evaluate_every=every), _again(folder, runtime, every), Path(folder)
        )
    name, arguments = take(arguments, "--recipe")
    words, rest = positional(arguments, Options())
    o = parse(Options(tuning=named_tuning(name)), rest, "finetune FROM", ABOUT)
    start = words or [o.tuning.init]
    if len(start) != 1 or not (start[0] and o.tuning.data and o.out):
        raise MapetError("mapet finetune needs what to start from, images and a folder: FROM --data DATA --out OUT.")
    require_apart(o.out, recipe=name if is_file(name) else None)
    t = _anchored(replace(o.tuning, init=start[0]))
    return stoppable(
        lambda: finetune(t, o.out, o.runtime, overwrite=o.overwrite, evaluate_every=o.evaluate_every),
        _again(o.out, o.runtime, o.evaluate_every),
        Path(o.out),
    )


def _again(folder: str, runtime: Runtime, every: int) -> str:
    return again(folder, runtime, "finetune") + (f" --evaluate-every {every}" if every else "")


def _resumed(folder: str, arguments: list[str]) -> Options:
    """The options to go on with; the settings must be those that the run was begun with."""
    t = read(reopened(folder).recipe, FinetuneRecipe)
    o = parse(Options(tuning=t), arguments, "finetune", ABOUT)
    require_unchanged(folder, t, o.tuning)
    return o
