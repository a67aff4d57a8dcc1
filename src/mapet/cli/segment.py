"""``mapet segment``: a pre-trained encoder and pairs of images and masks in, a segmentation model and its mIoU out."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mapet.api.kept_runtime import kept
from mapet.api.resume import begun_recipe, resume
from mapet.api.segment import named_segmentation, segment
from mapet.cli.options import given, require, take
from mapet.cli.training import again, resumed_options, stoppable
from mapet.config.flat import updated
from mapet.config.runtime import Runtime
from mapet.config.segmentation import SegmentRecipe

ABOUT = """Train UPerNet on a segmentation set, starting from FROM, and print its mIoU.

FROM is a run, an export folder, an official-format checkpoint, a timm model, or random.

--recipe NAME (or FILE.yaml) sets the defaults of all other options.

--resume OUT continues an interrupted training; with --data, if the images lie elsewhere now."""


@dataclass(frozen=True)
class Options:
    """Options of ``mapet segment FROM``."""

    out: str = ""
    """Folder for the run; must be empty or absent."""
    overwrite: bool = False
    """Replace the run in the folder once this one trains; only files that mapet wrote are deleted."""
    evaluate_every: int = 0
    """Test after every so many epochs, and at the end; 0: at the end only."""
    recipe: SegmentRecipe = field(default_factory=SegmentRecipe)
    runtime: Runtime = field(default_factory=Runtime)


def command(arguments: list[str]) -> int:
    """Parse, then train or resume."""
    folder, arguments = take(arguments, "--resume")
    if folder is not None:
        default = Options(recipe=begun_recipe(folder, SegmentRecipe), runtime=kept(folder, Runtime))
        o, moved = resumed_options(folder, default, "recipe", arguments, "segment", ABOUT)
        train = partial(resume, folder, runtime=o.runtime, evaluate_every=o.evaluate_every, **moved)
        return stoppable(train, _again(folder, o), Path(folder))
    name, arguments = take(arguments, "--recipe")
    default = Options(recipe=named_segmentation(name))
    settings = given(default, arguments, "segment", ABOUT)
    o = updated(default, **settings)
    require("segment", init=o.recipe.init, data=o.recipe.data, out=o.out)
    return stoppable(partial(segment, recipe=name, **settings), _again(o.out, o), Path(o.out))


def _again(folder: str, o: Options) -> str:
    every = f" --evaluate-every {o.evaluate_every}" if o.evaluate_every else ""
    return again(folder, o.runtime, "segment") + every
