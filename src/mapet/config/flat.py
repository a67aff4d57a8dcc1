"""Flat names of nested settings: ``epochs`` stands for ``optimization.epochs``."""

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from mapet.config.setting import flat_name, group, option
from mapet.utils.errors import MapetError, nearest

T = TypeVar("T")


def paths(kind: Any, prefix: str = "") -> dict[str, str]:
    """The dotted name of every setting of a settings class, or of a value of it, by its flat name."""
    found: dict[str, str] = {}
    for one in fields(kind):
        inner, dotted = group(one), f"{prefix}{one.name}"
        found |= paths(inner, f"{dotted}.") if inner else {flat_name(one): dotted}
    return found


def earlier(kind: Any) -> dict[str, str]:
    """The present flat name of every setting of a settings class by each flat name that it had before."""
    found: dict[str, str] = {}
    for one in fields(kind):
        inner = group(one)
        found |= earlier(inner) if inner else dict.fromkeys(option(one).old, flat_name(one))
    return found


def dotted(value: Any, prefix: str = "") -> dict[str, Any]:
    """The value of every setting by its dotted name."""
    found: dict[str, Any] = {}
    for one in fields(value):
        inner = getattr(value, one.name)
        found |= dotted(inner, f"{prefix}{one.name}.") if is_dataclass(inner) else {prefix + one.name: inner}
    return found


def updated(value: T, **settings: Any) -> T:
    """A copy of the dataclass ``value`` with some settings changed, by flat names and all at once.

    Raises:
        MapetError: a setting that does not exist, or a value that is refused.
    """
    known, before = paths(value), earlier(value)
    for name in settings:
        if name in before and name not in known:
            raise MapetError(f'There is no setting "{name}": it is called "{before[name]}" now.')
        if name not in known:
            raise MapetError(f'There is no setting "{name}".{nearest(name, known)}')
    return with_settings(value, {known[name]: setting for name, setting in settings.items()})


def with_settings(value: T, changes: dict[str, Any]) -> T:
    """A copy of the dataclass ``value`` with some settings changed, by dotted names and all at once.

    Raises:
        MapetError: a value that is refused.
    """
    plain, groups = dict[str, Any](), dict[str, dict[str, Any]]()
    for dotted_name, setting in changes.items():
        name, _, inner = dotted_name.partition(".")
        if inner:
            groups.setdefault(name, {})[inner] = setting
        else:
            plain[name] = setting
    changed = {name: with_settings(getattr(value, name), own) for name, own in groups.items()}
    return replace(value, **plain, **changed)  # type: ignore[type-var]


def diff(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """The settings in which two values of one class differ, by dotted name, with both values."""
    theirs = dotted(b)
    return {name: (value, theirs[name]) for name, value in dotted(a).items() if value != theirs[name]}


def updated_from(value: T, settings: dict[str, Any]) -> T:
    """``updated`` by those of the settings that ``value`` has, which are removed from ``settings``."""
    return updated(value, **{name: settings.pop(name) for name in paths(value) if name in settings})
