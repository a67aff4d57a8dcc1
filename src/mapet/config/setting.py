"""What a field of a settings class declares: its type, limits and choices, and with ``Option`` its names.

    @settings
    class Optimization:
        lr: Annotated[float | None, Field(ge=0), Option(common=True)] = None

Construction validates, and refuses with a one-line ``MapetError``.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import Field as DataclassField
from dataclasses import dataclass, field, is_dataclass
from functools import wraps
from os import PathLike, fspath
from typing import Annotated, Any, TypeVar, cast, dataclass_transform, get_args, get_origin

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo
from pydantic.dataclasses import dataclass as validated

from mapet.utils.errors import MapetError

T = TypeVar("T")
CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)

PathText = Annotated[str, BeforeValidator(lambda value: fspath(value) if isinstance(value, PathLike) else value)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Interval = tuple[float, float]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Below1 = Annotated[float, Field(ge=0, lt=1)]


def several(value: Any) -> tuple[Any, ...]:
    """One value, or several, as a tuple."""
    return (value,) if isinstance(value, str) or not isinstance(value, Iterable) else tuple(value)


def separated(value: Any) -> tuple[str, ...]:
    """One value or several as text, also with commas: "a, b" → ("a", "b")."""
    return tuple(part.strip() for text in several(value) for part in str(text).split(",") if part.strip())


def distinct(names: Iterable[Any], setting: str | None) -> None:
    """Refuse a list of the setting that names something twice.

    Raises:
        MapetError: the first such name.
    """
    seen = set[Any]()
    for name in names:
        require((name not in seen, f"--{(setting or '').replace('_', '-')} names {name} twice."))
        seen.add(name)


def _distinct(value: tuple[T, ...], info: ValidationInfo) -> tuple[T, ...]:
    distinct(value, info.field_name)
    return value


COMMAS, REPEATED = "commas", "repeated"  # how the command line gives a tuple, if not as several words
Listed = Annotated[tuple[T, ...], COMMAS, BeforeValidator(separated), AfterValidator(_distinct)]
Repeated = Annotated[tuple[str, ...], REPEATED, BeforeValidator(several)]


@dataclass(frozen=True)
class Option:
    """How a field appears on the command line and among flat settings."""

    name: str | None = None
    """Flat name where it differs from the field's."""
    old: tuple[str, ...] = ()
    """Earlier names, of the field in YAML and of the option."""
    common: bool = False
    """Whether the short help shows it."""
    objectives: tuple[str, ...] = ()
    """The objectives that have this setting; empty: all."""


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def settings(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen dataclass whose construction validates its fields.

    Its ``__post_init__`` may check fields against each other.
    """
    made: Any = validated(cls, frozen=True, config=CONFIG)
    made.__init__ = _refusing(made, made.__init__)
    return cast("type[T]", made)


def _refusing(kind: type[T], construct: Callable[..., None]) -> Callable[..., None]:
    @wraps(construct)
    def __init__(self: T, *values: Any, **named: Any) -> None:
        try:
            construct(self, *values, **named)
        except ValidationError as error:
            from mapet.config.refusal import refusal

            raise refusal(error, kind) from None

    return __init__


def option(one: "DataclassField[Any]") -> Option:
    """What the field's annotation says of its option."""
    extras = get_args(one.type)[1:] if get_origin(one.type) is Annotated else ()
    return next((extra for extra in extras if isinstance(extra, Option)), Option())


def flat_name(one: "DataclassField[Any]") -> str:
    """The field's name among flat settings: ``max_images``."""
    return option(one).name or one.name


def flag(one: "DataclassField[Any]") -> str:
    """The field's name on the command line: ``--max-images``."""
    return f"--{flat_name(one).replace('_', '-')}"


def plain(kind: Any) -> Any:
    """The type that ``Annotated`` wraps."""
    return plain(get_args(kind)[0]) if get_origin(kind) is Annotated else kind


def group(one: "DataclassField[Any]") -> type | None:
    """The settings class that the field holds, if it holds one."""
    kind = plain(one.type)
    return kind if isinstance(kind, type) and is_dataclass(kind) else None


def require(*rules: tuple[bool, str]) -> None:
    """Refuse with the text of the first rule that does not hold.

    Raises:
        MapetError: one does not.
    """
    for holds, text in rules:
        if not holds:
            raise MapetError(text)


def require_intervals(scale: Interval | None, ratio: Interval = (1, 1)) -> None:
    """Refuse bounds of random crops that are not intervals."""
    low, high = scale or (1, 1)
    require(
        (0 < low <= high <= 1, f"--scale must be two numbers, 0 < low <= high <= 1, got {low:g} {high:g}."),
        (0 < ratio[0] <= ratio[1], f"--ratio must be two numbers, 0 < low <= high, got {ratio[0]:g} {ratio[1]:g}."),
    )


def spoken(names: Sequence[str], link: str) -> str:
    """ "a, b and c"."""
    *most, last = names
    return f"{', '.join(most)} {link} {last}" if most else last
