"""``mapet tokenizer train-vqkd``: train a VQ-KD tokenizer (BEiT v2) to say in codes what a teacher sees."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.api.training import reopened, require_unchanged
from mapet.cli.options import parse, positional, take
from mapet.cli.pretrain import again, stoppable
from mapet.config.recipe import Runtime, read
from mapet.config.vqkd import VQKDRecipe
from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    pass
from mapet.api.train_vqkd import _anchored, resume, train

ABOUT = """Train a VQ-KD tokenizer (BEiT v2) on the images DATA to say in codes what a teacher sees in them.

The folder --out is a run's, and a tokenizer's when the training has ended.

--resume OUT goes on with an interrupted run."""


VERB = ("tokenizer", "train-vqkd")


@dataclass(frozen=True)
class Options:
    """Options of ``mapet tokenizer train-vqkd DATA``."""

    out: str = ""
    """Folder for the run and the tokenizer; must be empty or absent."""
    overwrite: bool = False
    """Replace the run that is in the folder once this one trains; nothing but files of mapet is deleted."""
    training: VQKDRecipe = field(default_factory=VQKDRecipe)
    runtime: Runtime = field(default_factory=Runtime)


def command(arguments: list[str]) -> int:
    """Parse, train or go on, tell what came out."""
    folder, arguments = take(arguments, "--resume")
    if folder is not None:
        runtime = _machine(folder, arguments)
        return stoppable(lambda: resume(folder, runtime), again(folder, runtime, *VERB), Path(folder))
    words, rest = positional(arguments, Options())
    o = parse(Options(), rest, "tokenizer train-vqkd DATA", ABOUT)
    data = [*words, *filter(None, [o.training.data])]
    if len(data) != 1 or not o.out:
        raise MapetError("mapet tokenizer train-vqkd needs images and a folder: DATA --out FOLDER.")
    training = _anchored(replace(o.training, data=data[0]))
    begin = partial(train, training, o.out, o.runtime, overwrite=o.overwrite)
    return stoppable(begin, again(o.out, o.runtime, *VERB), Path(o.out))


def _machine(folder: str, arguments: list[str]) -> Runtime:
    """The machine settings to go on with; whatever else is given must be what the run was begun with."""
    training = read(reopened(folder).recipe, VQKDRecipe)
    o = parse(Options(training=training), arguments, "tokenizer train-vqkd", ABOUT)
    require_unchanged(folder, training, o.training)
    return o.runtime
