"""Flat names of nested settings: ``epochs`` stands for ``optimization.epochs``."""

from dataclasses import fields, is_dataclass, replace
from functools import reduce
from typing import Any, TypeVar

from mapet.utils.errors import MapetError, nearest

T = TypeVar("T")


def paths(value: Any, prefix: str = "") -> dict[str, str]:
    """The dotted name of every setting of nested dataclasses, by its flat name."""
    found: dict[str, str] = {}
    for one in fields(value):
        inner, dotted = getattr(value, one.name), f"{prefix}{one.name}"
        found |= paths(inner, f"{dotted}.") if is_dataclass(inner) else {one.name: dotted}
    return found


def updated(value: T, **settings: Any) -> T:
    """A copy of the dataclass ``value`` with some settings changed, by flat names and all at once.

    Raises:
        MapetError: a setting that does not exist, or a value that is refused.
    """
    known, groups = paths(value), dict[str, dict[str, Any]]()
    for name, setting in settings.items():
        if name not in known:
            raise MapetError(f'There is no setting "{name}".{nearest(name, known)}')
        group, _, last = known[name].rpartition(".")
        groups.setdefault(group, {})[last] = setting
    plain = groups.pop("", {})
    inner = {group: replace(getattr(value, group), **own) for group, own in groups.items()}
    return replace(value, **plain, **inner)  # type: ignore[type-var]


def updated_from(value: T, settings: dict[str, Any]) -> T:
    """``updated`` by those of the settings that ``value`` has, which are removed from ``settings``."""
    return updated(value, **{name: settings.pop(name) for name in paths(value) if name in settings})


def changes(value: Any, other: Any) -> dict[str, Any]:
    """The settings of ``other`` that differ from those of ``value``, by flat names."""

    def at(root: Any, path: str) -> Any:
        return reduce(getattr, path.split("."), root)

    return {name: at(other, path) for name, path in paths(value).items() if at(other, path) != at(value, path)}
