"""One line for a setting that pydantic refuses: the setting, what it must be, and the value."""

from collections.abc import Iterator
from dataclasses import Field, fields
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError

from mapet.config.flat import paths
from mapet.config.setting import flag, group, option, plain, spoken
from mapet.utils.errors import MapetError, nearest, similar

TYPES = {float: "a number", int: "a whole number", bool: "true or false", str: "text", NoneType: "None"}
LIMITS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
BEYOND = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}
WORDS = {2: "two", 3: "three", 4: "four"}


def refusal(error: ValidationError, kind: type, prefix: str = "") -> MapetError:
    """The error for the first thing that is wrong with settings of the class ``kind``; ``prefix`` comes before it."""
    first = error.errors(include_url=False)[0]
    loc, value = first["loc"], first["input"]
    if first["type"] in ("unexpected_keyword_argument", "invalid_key"):
        return MapetError(f"{prefix}{unknown(str(loc[-1]), kind, tuple(map(str, loc[:-1])))}")
    if first["type"] == "unexpected_positional_argument":
        return MapetError(f"{prefix}{kind.__name__} takes {len(fields(kind))} settings, got more.")
    one = _field(kind, loc)
    if one is not None and first["type"] == "too_short":
        return MapetError(f"{prefix}{flag(one)} is empty: give at least one.")
    if one is None:
        return MapetError(f"{prefix}the settings must be {_group(kind)}, got {shown(value)}.")
    if first["type"] in BEYOND:
        what = " and ".join(dict.fromkeys(_limits(one.type)))
    elif first["type"] == "finite_number":
        what = "a finite number"
    else:
        what = wanted(one.type)
    close = similar(value, choices(one.type)) if isinstance(value, str) else None
    hint = f' Did you mean "{close}"?' if close else ""
    return MapetError(f"{prefix}{flag(one)} must be {what}, got {shown(value)}.{hint}")


def unknown(name: str, kind: type, groups: tuple[str, ...] = ()) -> str:
    """What is said of a setting that the class ``kind``, or a group within it, does not have."""
    owner = kind
    for part in groups:
        owner = next((inner for one in fields(owner) if one.name == part and (inner := group(one))), owner)
    there = ".".join(groups)
    if now := next((one.name for one in fields(owner) if name in option(one).old), None):
        return f'There is no setting "{name}": it is called "{now}" now.'
    belongs, _, last = paths(kind).get(name, "").rpartition(".")
    if last and belongs != there:
        where = f'under "{belongs}"' if belongs else "at the top level"
        return f'"{name}" does not belong here: write it {where}{f" as {last}" if last != name else ""}.'
    hint = nearest(name, [one.name for one in fields(owner)])
    return f'There is no setting "{name}"{f" in {there}" if there else ""}.{hint}'


def shown(value: Any) -> str:
    """A value as a message names it."""
    try:
        text = f'"{value}"' if isinstance(value, str) else str(value).removesuffix(".0")
    except ValueError:  # Python refuses to print it
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}…"


def _field(kind: type, loc: tuple[int | str, ...]) -> "Field[Any] | None":
    """The innermost field on the way."""
    found = None
    for part in loc:
        known: dict[int | str, Field[Any]] = {one.name: one for one in fields(kind)}
        known |= enumerate(fields(kind)) if found is None else {}
        if part not in known:
            break
        found = known[part]
        if (inner := group(found)) is None:
            break
        kind = inner
    return found


def wanted(kind: Any) -> str:
    """What a value of a type is, in words."""
    kind, parts = plain(kind), get_args(plain(kind))
    if isinstance(kind, type) and hasattr(kind, "__dataclass_fields__"):
        return _group(kind)
    if names := list(choices(kind)):
        return f"one of {', '.join(names)}" if len(names) > 2 else spoken(names, "or")
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(wanted(part) for part in parts)
    if get_origin(kind) is tuple:
        count = "several" if ... in parts else WORDS.get(len(parts), str(len(parts)))
        return f"{count} {'names' if plain(parts[0]) is str else 'numbers'}"
    return TYPES.get(kind, "of another type")


def _group(kind: type) -> str:
    return f"a group of settings ({', '.join(one.name for one in fields(kind)[:3])}, …)"


def choices(kind: Any) -> Iterator[str]:
    """The names of ``Literal`` within a type."""
    if get_origin(kind) is Literal:
        yield from map(str, get_args(kind))
    elif get_origin(kind) in (Union, UnionType) and any(get_origin(plain(part)) is Literal for part in get_args(kind)):
        for part in get_args(kind):
            yield from ["None"] if part is NoneType else choices(part)
    elif get_origin(kind) in (Annotated, tuple):
        yield from choices(get_args(kind)[0])


def _number(limit: float) -> str:
    return str(limit) if isinstance(limit, int) else f"{limit:g}"


def _limits(kind: Any) -> Iterator[str]:
    """The limits within a type: "> 0"."""
    if get_origin(kind) is Annotated:
        for extra in get_args(kind)[1:]:
            for limit in getattr(extra, "metadata", ()):
                yield from (
                    f"{sign} {_number(getattr(limit, name))}" for name, sign in LIMITS.items() if hasattr(limit, name)
                )
    for part in get_args(kind):
        if get_origin(part) is not Literal:
            yield from _limits(part)
