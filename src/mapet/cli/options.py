"""Options from dataclasses, parsed by tyro; a mistake is one line with the nearest name."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType
from typing import Annotated, Any, TypedDict, TypeVar, get_args, get_origin, get_type_hints

from mapet.cli.refusals import refusing
from mapet.cli.verbs import VERBS
from mapet.config.flat import earlier, updated
from mapet.config.refusal import choices
from mapet.config.setting import COMMAS, REPEATED, flat_name, option
from mapet.utils.errors import MapetError
from mapet.utils.io import require_writable
from mapet.utils.log import log

T = TypeVar("T")

OLD_NAMES = {  # options of version 0.1 that are not fields of settings
    "limit": "max_images",
    "max_bad": "max_bad_fraction",
    "memory": "cache_gib",
    "micro_batch": "micro_batch_size",
    "against": "baseline",
    "pictures": "images",
    "eval_limit": "eval_max_images",
}


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

    name: str
    """Flat: max_images."""
    field: str
    """In its class."""
    hint: Any
    default: Any
    owner: type
    common: bool

    @property
    def option(self) -> str:
        """``--max-images``."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def flag(self) -> str:
        """As ``option``, but ``--no-compile`` for what is on by default."""
        return self.option.replace("--", "--no-" if self.default is True else "--", 1)

    @property
    def repeated(self) -> bool:
        """Whether it may come several times."""
        return REPEATED in get_args(self.hint)

    @property
    def form(self) -> str | None:
        """The form of a list that is one word: random|scratch,..."""
        if COMMAS not in get_args(self.hint):
            return None
        kind = plain_type(get_args(plain_type(self.hint))[0])
        return f"{'|'.join(choices(self.hint)) or {int: 'INT'}.get(kind, 'TEXT')},..."


def leaves(value: Any) -> Iterator[Leaf]:
    """All options of nested dataclasses."""
    hints = get_type_hints(type(value), include_extras=True)
    for one in fields(value):
        inner = getattr(value, one.name)
        if is_dataclass(inner):
            yield from leaves(inner)
        else:
            yield Leaf(flat_name(one), one.name, hints[one.name], inner, type(value), option(one).common)


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
    _help(default, arguments, verb, description)
    import tyro

    arguments = _renamed(arguments, known, earlier(default))
    words = {word: name for word, name in VERBS[verb].words.items() if name in known}
    named = _named(arguments)
    hints = {name: _for_tyro(one, arguments) for name, one in known.items() if name in named}
    hints |= {word: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar=word)] for word in words}
    repeated: Any = {name: () for name, one in known.items() if one.repeated}
    with refusing(arguments, {name: one.hint for name, one in known.items()}, verb):
        found = tyro.cli(table(hints), args=arguments, default=repeated, prog=f"mapet {verb}", console_outputs=False)
    found = {name: value for name, value in found.items() if name not in repeated or value}
    for word, name in words.items():
        if word in found and name in found:
            raise MapetError(f"{word} and {known[name].option} are the same: give one of them.")
        if word in found:
            found[name] = found.pop(word)
    if "out" in found:
        require_writable(found["out"])
    return found


def _named(arguments: Sequence[str]) -> set[str]:
    """Flat names that ``arguments`` may mean: tyro takes up to 0.1 s for options that nobody gave."""
    options = {word.partition("=")[0].removeprefix("--") for word in arguments if word.startswith("--")}
    return {name.replace("-", "_") for option in options for name in (option, option.removeprefix("no-"))}


def table(hints: Mapping[str, Any]) -> Any:
    """The options by their types; tyro gives back only those that are in the arguments."""
    return TypedDict("options", dict(hints), total=False)  # type: ignore[operator]


def require(verb: str, **values: object) -> None:
    """Refuse a call of ``verb`` in which one of the options ``values`` has no value.

    Raises:
        MapetError: the missing options, and the form of the command.
    """
    words = {name: word for word, name in VERBS[verb].words.items()}
    missing = [words.get(name, f"--{name.replace('_', '-')}") for name, value in values.items() if not value]
    if missing:
        raise MapetError(f"mapet {verb} needs {' and '.join(missing)}: mapet {VERBS[verb].usage}")


def take(arguments: list[str], option: str) -> tuple[str | None, list[str]]:
    """The value of one option that decides about the others' defaults, and the rest of the arguments.

    Raises:
        MapetError: the option comes without a value.
    """
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name != option:
            continue
        if equals:
            return value, arguments[:index] + arguments[index + 1 :]
        if index + 1 == len(arguments) or arguments[index + 1].startswith("--"):
            raise MapetError(f"{option} needs a value.")
        return arguments[index + 1], arguments[:index] + arguments[index + 2 :]
    return None, arguments


def recipe_in(arguments: list[str]) -> str | None:
    """The recipe whose settings a help shows as defaults: that of ``--recipe``, or the first word."""
    first = arguments[0] if arguments and not arguments[0].startswith("-") else None
    return take(arguments, "--recipe")[0] or first


def changed(options: Any) -> list[str]:
    """The words of a command line that set what is not at its default."""
    words: list[str] = []
    for one, default in zip(leaves(options), leaves(type(options)()), strict=True):
        if one.default == default.default:
            continue
        value = one.default
        values = [] if isinstance(value, bool) else value if isinstance(value, tuple) else [value]
        if one.repeated:
            words += [word for single in values for word in (default.flag, single)]
        else:
            words += [default.flag, *map(str, values)]
    return words


def plain_type(hint: Any) -> Any:
    """A type without ``Annotated`` and ``| None``."""
    if get_origin(hint) is Annotated:
        return plain_type(get_args(hint)[0])
    parts = [part for part in get_args(hint) if part is not NoneType]
    return plain_type(parts[0]) if NoneType in get_args(hint) and len(parts) == 1 else hint


def _renamed(arguments: Sequence[str], known: Mapping[str, Leaf], old: Mapping[str, str]) -> list[str]:
    """``arguments`` with today's names of options; those of version 0.1 are noted."""
    renamed = list(arguments)
    for index, argument in enumerate(arguments):
        if argument == "--":
            break
        if not argument.startswith("--"):
            continue
        option, equals, value = argument.partition("=")
        name = option[2:].replace("-", "_")
        new = old.get(name) or OLD_NAMES.get(name, "")
        option = option.replace("_", "-")
        if name not in known and new in known:
            log.info(f"note      {option} is now {known[new].option}")
            option = known[new].option
        renamed[index] = f"{option}{equals}{value}"
    return renamed


def _for_tyro(one: Leaf, arguments: Sequence[str]) -> Any:
    """The type of an option, such that tyro takes as many words as there are values."""
    import tyro

    kind = plain_type(one.hint)
    if one.form:
        return Annotated[str, tyro.conf.arg(metavar=one.form)]
    if one.repeated:
        return Annotated[one.hint, tyro.conf.UseAppendAction]
    if get_origin(kind) is tuple and ... not in get_args(kind) and kind != one.hint:
        return NoneType if f"{one.option} None" in " ".join(arguments).replace("=", " ") else kind
    return one.hint


def _help(default: Any, arguments: Sequence[str], verb: str, description: str) -> None:
    """Print the help that is asked for, and leave."""
    before = list(arguments)[: list(arguments).index("--")] if "--" in arguments else arguments
    if not {"-h", "--help", "--help-all", "--help_all"} & set(before):
        return
    from mapet.cli import help as pages

    with _width() as columns:
        if {"-h", "--help"} & set(before):
            print(pages.short_help(default, verb, description, columns))
        else:
            pages.print_full_help(default, verb, description, columns)
    raise SystemExit(0)


@contextmanager
def _width() -> Iterator[int]:
    """The terminal's width, but at least 40 columns: tyro does not end in a few."""
    before, columns = os.environ.get("COLUMNS"), max(40, shutil.get_terminal_size().columns)
    os.environ["COLUMNS"] = str(columns)
    try:
        yield columns
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
