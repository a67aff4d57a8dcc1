"""Options from dataclasses, parsed by tyro; a mistake is one line with the nearest name."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from textwrap import fill
from types import NoneType
from typing import Annotated, Any, Literal, NoReturn, TypedDict, TypeVar, get_args, get_origin, get_type_hints

from mapet.cli.verbs import VERBS
from mapet.cli.words import positional, take
from mapet.config.flat import updated
from mapet.utils.errors import MapetError, similar
from mapet.utils.log import log

__all__ = ["changed", "given", "listed", "parse", "positional", "require", "require_outside", "take"]

T = TypeVar("T")
REPEATED = "repeated"
Repeated = Annotated[tuple[str, ...], REPEATED]  # an option that may come several times, with one value each

OLD_NAMES = {  # options of version 0.1
    "limit": "max-images",
    "max-bad": "max-bad-fraction",
    "memory": "cache-gib",
    "micro-batch": "micro-batch-size",
    "codes": "vocab-size",
    "fit-pictures": "fit-images",
    "start": "kmeans-init",
    "mode": "kmeans-mode",
    "distances": "kmeans-precision",
    "against": "baseline",
    "pictures": "images",
    "eval-limit": "eval-max-images",
}
TYPES = {int: "a whole number", float: "a number", bool: "true or false", NoneType: "None"}


@dataclass(frozen=True)
class Preset:
    """The option of a verb whose settings begin with a recipe."""

    recipe: str | None = None
    """A recipe's name (mapet list recipes) or FILE.yaml: the defaults of all other settings."""


@dataclass(frozen=True)
class Resume:
    """The option of a verb that can continue."""

    resume: str | None = None
    """Continue the interrupted run in this folder."""


@dataclass(frozen=True)
class Leaf:
    """One option."""

    name: str  # flat: max_images
    field: str
    hint: Any
    default: Any
    owner: type

    @property
    def flag(self) -> str:
        """``--max-images``, or ``--no-compile`` for what is on by default."""
        return f"--{'no-' if self.default is True else ''}{self.name.replace('_', '-')}"


def leaves(value: Any) -> Iterator[Leaf]:
    """All options of nested dataclasses."""
    hints = get_type_hints(type(value), include_extras=True)
    for one in fields(value):
        inner = getattr(value, one.name)
        if is_dataclass(inner):
            yield from leaves(inner)
        else:
            yield Leaf(one.name, one.name, hints[one.name], inner, type(value))


def parse(default: T, arguments: Sequence[str], verb: str, description: str) -> T:
    """``default`` with what ``arguments`` say.

    Raises:
        MapetError: an unknown option, a wrong or missing value.
        SystemExit: after ``--help`` and ``--help-all``.
    """
    return updated(default, **given(default, arguments, verb, description))


def given(default: Any, arguments: Sequence[str], verb: str, description: str) -> dict[str, Any]:
    """What ``arguments`` say, by flat names; ``--a-b`` and ``--a_b`` are the same option. Raises as ``parse``.

    A verb's words, as in ``mapet pack DATA``, stand for the options that ``VERBS`` names.
    """
    verb = " ".join(part for part in verb.split() if part.islower() and not part.startswith("-"))
    known = {one.name: one for one in leaves(default)}
    arguments = _renamed(arguments, known)
    _help(default, arguments, verb, description)
    words = {word: name for word, name in VERBS[verb].words.items() if name in known}
    found = _parsed(arguments, known, words, verb)
    for word, name in words.items():
        if word not in found:
            continue
        if name in found:
            raise MapetError(f"{word} and --{name.replace('_', '-')} are the same: give one of them.")
        found[name] = found.pop(word)
    return found


def require(verb: str, **values: object) -> None:
    """Refuse a call of ``verb`` in which one of the options ``values`` has no value.

    Raises:
        MapetError: the missing options, and the form of the command.
    """
    words = {name: word for word, name in VERBS[verb].words.items()}
    missing = [words.get(name, f"--{name.replace('_', '-')}") for name, value in values.items() if not value]
    if missing:
        raise MapetError(f"mapet {verb} needs {' and '.join(missing)}: mapet {VERBS[verb].usage}")


def listed(text: str) -> tuple[str, ...]:
    """ "a, b" → ("a", "b")."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def require_outside(out: Path, data: str | None) -> None:
    """Refuse a folder for figures among the images ``data``, of which they would become some.

    Raises:
        MapetError: both are named.
    """
    if data and Path(data).is_dir() and out.resolve().is_relative_to(Path(data).resolve()):
        raise MapetError(f"{out} is inside {data}, and its figures would become images there: give another --out.")


def changed(options: Any) -> list[str]:
    """The words of a command line that set what is not at its default."""
    words: list[str] = []
    for one, default in zip(leaves(options), leaves(type(options)()), strict=True):
        if one.default == default.default:
            continue
        value = one.default
        values = [] if isinstance(value, bool) else value if isinstance(value, tuple) else [value]
        if _repeated(one):
            words += [word for single in values for word in (default.flag, single)]
        else:
            words += [default.flag, *map(str, values)]
    return words


def _renamed(arguments: Sequence[str], known: Mapping[str, Leaf]) -> list[str]:
    """``arguments`` with today's names of options; those of version 0.1 are noted."""
    renamed = list(arguments)
    options = {name.replace("_", "-") for name in known}
    for index, argument in enumerate(arguments):
        if argument == "--":
            break
        if not argument.startswith("--"):
            continue
        name, equals, value = argument[2:].partition("=")
        name = name.replace("_", "-")
        if name not in options and (new := OLD_NAMES.get(name)) in options:
            log.info(f"note      --{name} is now --{new}")
            name = new
        renamed[index] = f"--{name}{equals}{value}"
    return renamed


def _parsed(arguments: list[str], known: Mapping[str, Leaf], words: Mapping[str, str], verb: str) -> dict[str, Any]:
    """What tyro reads: only options that are given, by name, and words."""
    import tyro

    hints: dict[str, Any] = {name: _for_tyro(one, arguments) for name, one in known.items()}
    empty: Any = {name: () for name, one in known.items() if _repeated(one)}
    hints |= {word: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar=word)] for word in words}
    options = TypedDict("options", hints, total=False)  # type: ignore[misc]
    try:
        with _refusing(arguments, known, verb):
            found = tyro.cli(options, args=arguments, default=empty, prog=f"mapet {verb}", console_outputs=False)
    except SystemExit:
        raise MapetError(f"mapet {verb} cannot read these options. See mapet {verb} --help.") from None
    return {name: value for name, value in found.items() if name not in empty or value}


def _for_tyro(one: Leaf, arguments: list[str]) -> Any:
    """The type of an option, such that tyro takes as many words as there are values."""
    import tyro

    kind = plain_type(one.hint)
    if _repeated(one):
        return Annotated[one.hint, tyro.conf.UseAppendAction]
    if get_origin(kind) is tuple and ... not in get_args(kind) and NoneType in get_args(one.hint):
        said = " ".join(arguments).replace("=", " ")
        return NoneType if f"--{one.name.replace('_', '-')} None" in said else kind
    return one.hint


def _repeated(one: Leaf) -> bool:
    return REPEATED in get_args(one.hint)


@contextmanager
def _refusing(arguments: list[str], known: Mapping[str, Leaf], verb: str) -> Iterator[None]:
    """Turn tyro's refusals into errors of one line, where this version of tyro reports them."""
    try:
        from tyro._errors import on_parse_error
    except ImportError:
        yield
        return

    def refuse(event: Any) -> None:
        if tokens := getattr(event, "tokens", None):
            _refuse_unknown(tokens[0], known, verb)
        if (argument := getattr(event, "argument", None)) is not None:
            _refuse_value(known[argument.field.intern_name], arguments)

    with on_parse_error(refuse):
        yield


def _refuse_unknown(token: str, known: Mapping[str, Leaf], verb: str) -> NoReturn:
    if not token.startswith("-"):
        raise MapetError(f'Unexpected "{token}": mapet {VERBS[verb].usage}')
    option = token.partition("=")[0]
    close = similar(option, [one.flag for one in known.values()], cutoff=0.75)
    hint = f' Did you mean "{close}"?' if close else ""
    raise MapetError(f'mapet {verb} has no option "{option}".{hint} See mapet {verb} --help-all.')


def _refuse_value(one: Leaf, arguments: list[str]) -> NoReturn:
    """The error of an option whose value cannot be read."""
    option = f"--{one.name.replace('_', '-')}"
    index = next(i for i, word in reversed(list(enumerate(arguments))) if word.partition("=")[0] == option)
    value = arguments[index].partition("=")[2]
    values = [value] if value else []
    for word in arguments[index + 1 :]:
        if word.startswith("--"):
            break
        values.append(word)
    if not values:
        raise MapetError(f"{option} needs a value.")
    size = len(get_args(plain_type(one.hint))) if get_origin(plain_type(one.hint)) is tuple else 1
    got = " ".join(values[:size])
    close = similar(got, _choices(one.hint))
    raise MapetError(
        f'{option} must be {_wanted(one.hint)}, got "{got}".' + (f' Did you mean "{close}"?' if close else "")
    )


def plain_type(hint: Any) -> Any:
    """A type without ``Annotated`` and ``| None``."""
    if get_origin(hint) is Annotated:
        return plain_type(get_args(hint)[0])
    parts = [part for part in get_args(hint) if part is not NoneType]
    return plain_type(parts[0]) if NoneType in get_args(hint) and len(parts) == 1 else hint


def _choices(hint: Any) -> list[str]:
    return [str(choice) for choice in get_args(plain_type(hint))] if get_origin(plain_type(hint)) is Literal else []


def _wanted(hint: Any) -> str:
    """What a value of this type is, in words."""
    kind = plain_type(hint)
    if choices := _choices(hint):
        text = f"one of {', '.join(choices)}" if len(choices) > 2 else " or ".join(choices)
    elif get_origin(kind) is tuple:
        parts = get_args(kind)
        what = "texts" if plain_type(parts[0]) is str else "numbers"
        text = what if ... in parts else f"{len(parts)} {what}"
    else:
        text = TYPES.get(kind, "text")
    return f"{text} or None" if NoneType in get_args(hint) else text


def _help(default: Any, arguments: Sequence[str], verb: str, description: str) -> None:
    """Print the help that is asked for, and leave."""
    before = list(arguments)[: list(arguments).index("--")] if "--" in arguments else list(arguments)
    if not {"-h", "--help", "--help-all"} & set(before):
        return
    with _width() as columns:
        if "--help-all" in before:
            import tyro

            config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
            tyro.cli(type(default), args=["--help"], default=default, prog=f"mapet {verb}", config=config,
                     description=_wrapped(description, columns))  # fmt: skip
        from mapet.cli.help import short_help

        print(short_help(default, verb, description, columns))
    raise SystemExit(0)


def _wrapped(description: str, columns: int) -> str:
    """Paragraphs of short lines; tyro joins lines that begin with a letter, so all but the first are indented."""
    parts = description.split("\n\n")
    return "\n\n".join(fill(part, columns, subsequent_indent="  ", break_on_hyphens=False) for part in parts)


@contextmanager
def _width() -> Iterator[int]:
    """The terminal's width, but at least 40 columns: tyro does not end in a few."""
    before, columns = os.environ.get("COLUMNS"), max(40, shutil.get_terminal_size().columns)
    os.environ["COLUMNS"] = str(columns)
    try:
        yield columns
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
