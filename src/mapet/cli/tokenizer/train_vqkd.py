"""``mapet tokenizer train-vqkd``: train a VQ-KD tokenizer (BEiT v2)."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mapet.api.resume import begun_recipe, resume
from mapet.api.settings import changes
from mapet.api.train_vqkd import train_vqkd
from mapet.cli.options import parse, positional, take
from mapet.cli.training import again, resumed_options, stoppable
from mapet.config.recipe import Runtime
from mapet.config.vqkd import VQKDRecipe
from mapet.utils.errors import MapetError

ABOUT = """Train a VQ-KD tokenizer (BEiT v2) on the images DATA: its codes describe what a teacher sees in them.

The folder --out is a run's, and a tokenizer's once the training has ended.

--resume OUT continues an interrupted run."""
VERB = ("tokenizer", "train-vqkd")


@dataclass(frozen=True)
class Options:
    """Options of ``mapet tokenizer train-vqkd DATA``."""

    out: str = ""
    """Folder for the run and the tokenizer; must be empty or absent."""
    overwrite: bool = False
    """Replace the run in the folder once this one trains; only files that mapet wrote are deleted."""
    training: VQKDRecipe = field(default_factory=VQKDRecipe)
    runtime: Runtime = field(default_factory=Runtime)


def command(arguments: list[str]) -> int:
    """Parse, then train or resume."""
    folder, arguments = take(arguments, "--resume")
    if folder is not None:
        default = Options(training=begun_recipe(folder, VQKDRecipe))
        o = resumed_options(folder, default, "training", arguments, "tokenizer train-vqkd", ABOUT)
        return stoppable(partial(resume, folder, runtime=o.runtime), again(folder, o.runtime, *VERB), Path(folder))
    words, rest = positional(arguments, Options())
    o = parse(Options(), rest, "tokenizer train-vqkd DATA", ABOUT)
    settings = changes(VQKDRecipe(), o.training)
    if len([*words, *filter(None, [settings.pop("data", None)])]) > 1:
        raise MapetError("mapet tokenizer train-vqkd takes one set of images: DATA --out FOLDER.")
    data = words[0] if words else o.training.data
    train = partial(train_vqkd, data, o.out, runtime=o.runtime, overwrite=o.overwrite, **settings)
    return stoppable(train, again(o.out, o.runtime, *VERB), Path(o.out))
