"""``mapet pretrain``: unlabelled images in, an encoder out."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.api.tokenize import require_one_way
from mapet.api.training import Undone, reopened, require_unchanged
from mapet.cli.options import changed, parse, take
from mapet.config.recipe import Recipe, Runtime, load
from mapet.utils.errors import MapetError
from mapet.utils.log import say
from mapet.utils.owned import require_apart

if TYPE_CHECKING:
    pass
from mapet.api.pretrain import anchored, is_file, named_recipe, pretrain, resume

ABOUT = """Pre-train an encoder on unlabelled images.

--recipe NAME (or FILE.yaml) sets the defaults of all other options.

--resume RUN goes on with an interrupted run."""


@dataclass(frozen=True)
class Options:
    """Options of ``mapet pretrain``."""

    out: str = ""
    """Folder for the run; must be empty or absent."""
    overwrite: bool = False
    """Replace the run that is in the folder once this one trains; nothing but files of mapet is deleted."""
    recipe: Recipe = field(default_factory=Recipe)
    runtime: Runtime = field(default_factory=Runtime)


def command(arguments: list[str]) -> int:
    """Parse, train or go on, tell what came out."""
    folder, arguments = take(arguments, "--resume")
    if folder is not None:
        runtime = _machine(folder, arguments)
        return stoppable(lambda: resume(folder, runtime), again(folder, runtime), Path(folder))
    name, arguments = take(arguments, "--recipe")
    given = named_recipe(name)
    o = parse(Options(recipe=given), arguments, "pretrain", ABOUT)
    if not o.recipe.data or not o.out:
        raise MapetError("mapet pretrain needs --data (a folder of images, or cifar10) and --out (a folder).")
    require_apart(o.out, recipe=name if is_file(name) else None)
    t = o.recipe.tokenizer
    require_one_way(t, given.tokenizer, tokens=o.recipe.tokens, tokenizer=t.path)
    recipe = anchored(o.recipe)
    train = partial(pretrain, recipe, o.out, o.runtime, overwrite=o.overwrite)
    return stoppable(train, again(o.out, o.runtime), Path(o.out))


def stoppable(train: Callable[[], object], again: str, folder: Path | None = None) -> int:
    """0 when ``train`` ends; 128 + the signal's number when it is stopped, and the command that goes on is told.

    That is ``again``, or where nothing is in the ``folder`` yet the same command.
    """
    from mapet.engine.distributed import Stopped

    try:
        train()
    except Stopped as stopped:
        say(f"stopped   after step {stopped.step}; go on with: {again}")
        return 128 + stopped.number
    except KeyboardInterrupt as end:
        begun = folder is None or (
            not isinstance(end, Undone) and any((folder / name).exists() for name in ("recipe.yaml", "compare.yaml"))
        )
        say(f"stopped   before the next step; go on with: {again if begun else 'the same command'}")
        return 130
    return 0


def again(folder: str, runtime: Runtime, *verb: str) -> str:
    """The command that goes on with the run in ``folder``, its machine settings repeated; without a verb, pretrain."""
    return shlex.join(["mapet", *(verb or ("pretrain",)), "--resume", folder, *changed(runtime)])


def _machine(folder: str, arguments: list[str]) -> Runtime:
    """The machine settings to go on with; whatever else is given must be what the run was begun with."""
    recipe = load(reopened(folder).recipe)
    o = parse(Options(recipe=recipe), arguments, "pretrain", ABOUT)
    require_unchanged(folder, recipe, o.recipe)
    return o.runtime
