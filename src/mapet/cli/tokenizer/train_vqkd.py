"""``mapet tokenizer train-vqkd``: train a VQ-KD tokenizer (BEiT v2)."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mapet.api.kept_runtime import kept
from mapet.api.resume import begun_recipe, resume
from mapet.api.train_vqkd import train_vqkd
from mapet.cli.options import given, require, take
from mapet.cli.training import again, resumed_options, stoppable
from mapet.config.flat import updated
from mapet.config.runtime import Runtime
from mapet.config.vqkd import VQKDRecipe

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
        default = Options(training=begun_recipe(folder, VQKDRecipe), runtime=kept(folder, Runtime))
        o, moved = resumed_options(folder, default, "training", arguments, "tokenizer train-vqkd", ABOUT)
        train = partial(resume, folder, runtime=o.runtime, **moved)
        return stoppable(train, again(folder, o.runtime, *VERB), Path(folder))
    settings = given(Options(), arguments, "tokenizer train-vqkd", ABOUT)
    o = updated(Options(), **settings)
    require("tokenizer train-vqkd", data=o.training.data, out=o.out)
    return stoppable(partial(train_vqkd, **settings), again(o.out, o.runtime, *VERB), Path(o.out))
