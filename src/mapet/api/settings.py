"""Settings as an API function takes them: a recipe by name, file or value, and flat names over recipe and runtime."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

from mapet.api import images
from mapet.config.file import read
from mapet.config.flat import diff, paths, updated
from mapet.config.recipe import Recipe
from mapet.config.runtime import Runtime
from mapet.utils.errors import MapetError, nearest
from mapet.utils.log import log

R = TypeVar("R")
M = TypeVar("M", bound=Runtime)
P = TypeVar("P", str, str | None)


def named_recipe(name: Recipe | str | Path | None) -> Recipe:
    """A pre-training recipe by name or YAML file; the defaults for None.

    Raises:
        MapetError: no such recipe or file, or a file that does not fit.
    """
    from mapet.config.recipes import find

    return named(name, Recipe, find)


def named(name: R | str | Path | None, kind: type[R], find: Callable[[str], R]) -> R:
    """Settings of a ``kind`` by name or YAML file; the defaults for None, and settings as they are."""
    if name is None:
        return kind()
    if isinstance(name, kind):
        return name
    return read(str(name), kind) if is_file(name) else find(str(name))


def is_file(name: object) -> bool:
    """Whether settings are named by a YAML file."""
    return isinstance(name, str | Path) and str(name).endswith((".yaml", ".yml"))


def combined(recipe: R, runtime: M, settings: dict[str, Any]) -> tuple[R, M]:
    """Recipe and runtime with ``settings``, which are flat names of either.

    Raises:
        MapetError: a setting that neither has, or a value that is refused.
    """
    known, own = paths(recipe), paths(runtime)
    if unknown := [name for name in settings if name not in known and name not in own]:
        raise MapetError(f'There is no setting "{unknown[0]}".{nearest(unknown[0], [*known, *own])}')
    of_recipe = {name: value for name, value in settings.items() if name not in own}
    return updated(recipe, **of_recipe), updated(runtime, **{n: v for n, v in settings.items() if n in own})


def changes(before: Any, after: Any) -> dict[str, Any]:
    """The settings in which ``after`` differs from ``before``, by flat names: ``updated(before, **changes)``."""
    changed = diff(before, after)
    return {name: changed[path][1] for name, path in paths(before).items() if path in changed}


def absolute(path: P, *words: str) -> P:
    """The path made absolute; None, an empty path and ``words``, which are not paths, stay."""
    return str(images.absolute(path)) if path and path not in words else path


def require_given(**needed: tuple[object, str]) -> None:
    """Refuse empty settings: for each its value, and what it must be.

    Raises:
        MapetError: the first missing one.
    """
    for name, (value, what) in needed.items():
        if value in (None, ""):
            raise MapetError(f"{name if name.isupper() else f'--{name}'} is missing: give {what}.")


def require_unchanged(folder: str | Path, before: Any, after: Any, movable: Collection[str] = ()) -> dict[str, Any]:
    """Refuse settings other than those that the run in ``folder`` was begun with, except for the ``movable``.

    Returns:
        The movable ones that differ, by flat name.

    Raises:
        MapetError: the first other setting, with both values.
    """
    moved, given = {paths(before).get(name, ""): name for name in movable}, {}
    for name, (was, wanted) in diff(before, after).items():
        if name not in moved:
            raise MapetError(
                f"{folder} was begun with {name} = {was}, so it cannot be resumed with {wanted}: leave the option out, "
                "or begin a new run in another --out."
            )
        given[moved[name]] = wanted
    return given


def with_precision(recipe: R, accelerator: str = "auto") -> R:
    """The recipe, ``auto`` replaced by the precision that this machine's device trains fastest in, which is logged.

    Raises:
        MapetError: this machine does not have the accelerator.
    """
    from mapet.engine.distributed import pick_device
    from mapet.engine.precision import fastest_precision

    if getattr(recipe, "precision", None) != "auto":
        return recipe
    precision, reason = fastest_precision(pick_device(accelerator))
    log.info(f"precision {precision}: {reason}")
    return updated(recipe, precision=precision)
