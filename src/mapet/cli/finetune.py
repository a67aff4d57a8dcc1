"""``mapet finetune``: a pre-trained encoder and labelled images in, a classifier and its accuracy out."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mapet.api.finetune import finetune, named_tuning
from mapet.api.kept_runtime import kept
from mapet.api.resume import begun_recipe, resume
from mapet.cli.options import given, require, take
from mapet.cli.training import again, resumed_options, stoppable
from mapet.config.finetune import FinetuneRecipe
from mapet.config.flat import updated
from mapet.config.runtime import Runtime

ABOUT = """Train a classifier on labelled images, starting from FROM.

FROM is a run, an export folder, an official-format checkpoint, a timm model, or random.

--recipe NAME (or FILE.yaml) sets the defaults of all other options.

--resume OUT continues an interrupted fine-tuning; with --data, if the images lie elsewhere now."""


@dataclass(frozen=True)
class Options:
    """Options of ``mapet finetune FROM``."""

    out: str = ""
    """Folder for the run; must be empty or absent."""
    overwrite: bool = False
    """Replace the run in the folder once this one trains; only files that mapet wrote are deleted."""
    evaluate_every: int = 0
    """Test after every so many epochs, and at the end; 0: at the end only."""
    tuning: FinetuneRecipe = field(default_factory=FinetuneRecipe)
    runtime: Runtime = field(default_factory=Runtime)


def command(arguments: list[str]) -> int:
    """Parse, then train or resume."""
    folder, arguments = take(arguments, "--resume")
    if folder is not None:
        default = Options(tuning=begun_recipe(folder, FinetuneRecipe), runtime=kept(folder, Runtime))
        o, moved = resumed_options(folder, default, "tuning", arguments, "finetune", ABOUT)
        train = partial(resume, folder, runtime=o.runtime, evaluate_every=o.evaluate_every, **moved)
        return stoppable(train, _again(folder, o), Path(folder))
    name, arguments = take(arguments, "--recipe")
    default = Options(tuning=named_tuning(name))
    settings = given(default, arguments, "finetune", ABOUT)
    o = updated(default, **settings)
    require("finetune", init=o.tuning.init, data=o.tuning.data, out=o.out)
    return stoppable(partial(finetune, recipe=name, **settings), _again(o.out, o), Path(o.out))


def _again(folder: str, o: Options) -> str:
    every = f" --evaluate-every {o.evaluate_every}" if o.evaluate_every else ""
    return again(folder, o.runtime, "finetune") + every
