"""``mapet pretrain``: unlabelled images in, an encoder out."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mapet.api.kept_runtime import kept
from mapet.api.pretrain import pretrain
from mapet.api.resume import begun_recipe, resume
from mapet.api.settings import named_recipe
from mapet.cli.options import given, require, take
from mapet.cli.training import again, resumed_options, stoppable
from mapet.config.flat import updated
from mapet.config.recipe import Recipe
from mapet.config.runtime import PretrainRuntime

ABOUT = """Pre-train an encoder on unlabelled images.

--recipe NAME (or FILE.yaml) sets the defaults of all other options.

--resume RUN continues an interrupted run; with --data or --tokens, if these lie elsewhere now; --epochs may be
raised while the learning rate is constant or in its warm-up."""


@dataclass(frozen=True)
class Options:
    """Options of ``mapet pretrain``."""

    out: str = ""
    """Folder for the run; must be empty or absent."""
    overwrite: bool = False
    """Replace the run in the folder once this one trains; only files that mapet wrote are deleted."""
    recipe: Recipe = field(default_factory=Recipe)
    runtime: PretrainRuntime = field(default_factory=PretrainRuntime)


def command(arguments: list[str]) -> int:
    """Parse, then train or resume."""
    folder, arguments = take(arguments, "--resume")
    if folder is not None:
        default = Options(recipe=begun_recipe(folder, Recipe), runtime=kept(folder, PretrainRuntime))
        o, moved = resumed_options(folder, default, "recipe", arguments, "pretrain", ABOUT)
        return stoppable(partial(resume, folder, runtime=o.runtime, **moved), again(folder, o.runtime), Path(folder))
    name, arguments = take(arguments, "--recipe")
    default = Options(recipe=named_recipe(name))
    settings = given(default, arguments, "pretrain", ABOUT)
    o = updated(default, **settings)
    require("pretrain", data=o.recipe.data, out=o.out)
    return stoppable(partial(pretrain, name, **settings), again(o.out, o.runtime), Path(o.out))
