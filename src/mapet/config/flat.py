"""Flat names of nested settings: ``epochs`` stands for ``optimization.epochs``."""

from dataclasses import fields, is_dataclass, replace
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
    known = paths(value)
    for name in settings:
        if name not in known:
            raise MapetError(f'There is no setting "{name}".{nearest(name, known)}')
    return with_settings(value, {known[name]: setting for name, setting in settings.items()})


def with_settings(value: T, changes: dict[str, Any]) -> T:
    """A copy of the dataclass ``value`` with some settings changed, by dotted names and all at once.

    Raises:
        MapetError: a value that is refused.
    """
    plain, groups = dict[str, Any](), dict[str, dict[str, Any]]()
    for dotted, setting in changes.items():
        name, _, inner = dotted.partition(".")
        if inner:
            groups.setdefault(name, {})[inner] = setting
        else:
            plain[name] = setting
    return replace(value, **plain, **{name: with_settings(getattr(value, name), own) for name, own in groups.items()})  # type: ignore[type-var]
