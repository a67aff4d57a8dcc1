"""Options from dataclasses, by tyro; a mistake becomes one line with the nearest name."""

import io
import re
import sys
from collections.abc import Iterable
from contextlib import redirect_stderr
from dataclasses import fields, is_dataclass
from functools import partial
from math import inf
from textwrap import fill
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from mapet.config.setting import flag, flat_name, option, plain
from mapet.utils.errors import MapetError, nearest

T = TypeVar("T")
WIDTH = 79  # of descriptions in the help


def parse(default: T, arguments: list[str], verb: str, description: str) -> T:
    """``default`` with what ``arguments`` say; ``--a-b`` and ``--a_b`` are the same option.

    Raises:
        MapetError: an unknown option, a wrong or missing value.
        SystemExit: after ``--help``.
    """
    import tyro

    known = names(default)
    for argument in arguments:
        if argument == "--":
            break
        option = argument.split("=", 1)[0].replace("_", "-")
        if option.startswith("--") and option not in known and option != "--help":
            raise MapetError(f'mapet {verb} has no option "{option}".{_near(option, known)}')
    said = io.StringIO()
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    try:
        with redirect_stderr(said):
            return tyro.cli(
                type(default),
                args=arguments,
                default=default,
                prog=f"mapet {verb}",
                description=_wrapped(description),
                config=config,
                registry=_registry(),
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise MapetError(f"{_one_line(said.getvalue()).removesuffix('.')}. See mapet {verb} --help.") from None


def _registry() -> Any:
    """How tyro reads settings: options under their flat names, and choices that the settings themselves check."""
    from tyro import conf, constructors
    from tyro._docstrings import get_field_docstring

    registry = constructors.ConstructorRegistry()

    @registry.primitive_rule
    def _(info: Any) -> Any:
        if get_origin(info.type) is not Literal:
            return None
        return constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="{" + ",".join(get_args(info.type)) + "}",
            instance_from_str=lambda words: words[0],
            is_instance=lambda value: isinstance(value, str),
            str_from_instance=lambda value: [value],
        )

    @registry.struct_rule
    def _(info: Any) -> Any:
        owner: Any = info.type
        if not any(option(one).name for one in getattr(owner, "__dataclass_fields__", {}).values()):
            return None
        found = []
        for one in fields(owner):
            kind: Any = Annotated[one.type, conf.arg(name=option(one).name)] if option(one).name else one.type
            help_text = partial(get_field_docstring, owner, one.name, info.markers)
            found.append(constructors.StructFieldSpec(one.name, kind, getattr(info.default, one.name), help_text))
        return constructors.StructConstructorSpec(owner, tuple(found))

    return registry


def names(value: Any) -> set[str]:
    """All options of nested dataclasses, as ``--kebab-case``."""
    found: set[str] = set()
    for one in fields(value):
        inner = getattr(value, one.name)
        found |= names(inner) if is_dataclass(inner) else {_flag(flat_name(one), inner)}
    return found


def _flag(name: str, value: Any) -> str:
    """The option that sets a setting; what is true already can only be taken back."""
    return f"--{'no-' if value is True else ''}{name.replace('_', '-')}"


def take(arguments: list[str], option: str) -> tuple[str | None, list[str]]:
    """The value of one option that decides about the others' defaults, and the rest of the arguments.

    Raises:
        MapetError: the option comes without a value.
    """
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name != option:
            continue
        if equals:
            return value, arguments[:place] + arguments[place + 1 :]
        if place + 1 == len(arguments) or arguments[place + 1].startswith("--"):
            raise MapetError(f"{option} needs a value.")
        return arguments[place + 1], arguments[:place] + arguments[place + 2 :]
    return None, arguments


def positional(arguments: list[str], options: object) -> tuple[list[str], list[str]]:
    """The words that are neither an option of the dataclass ``options`` nor an option's value, and all the rest."""
    takes, left = _values(options), 0.0
    words: list[str] = []
    rest: list[str] = []
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, _ = argument.replace("_", "-").partition("=")
            left = 0 if equals else takes.get(name, 1)
        elif left == 0 and argument != "-h":
            words.append(argument)
            continue
        else:
            left = max(0, left - 1)
        rest.append(argument)
    return words, rest


def take_all(arguments: list[str], option: str) -> tuple[tuple[str, ...], list[str]]:
    """The values of an option that may be repeated, and the rest of the arguments."""
    found: list[str] = []
    while True:
        value, arguments = take(arguments, option)
        if value is None:
            return tuple(found), arguments
        found.append(value)


def joined(arguments: list[str], names: Iterable[str]) -> list[str]:
    """``--objectives a,b`` as ``--objectives=a,b``, so that a positional argument may follow."""
    for name in names:
        long = f"--{name.replace('_', '-')}"
        values, arguments = take_all(arguments, long)
        arguments = [*arguments, *(f"{long}={value}" for value in values[-1:])]
    return arguments


def separated(arguments: list[str], names: Iterable[str]) -> list[str]:
    """``--batch-sizes=4,8`` as ``--batch-sizes 4 8``."""
    known = {f"--{name.replace('_', '-')}" for name in names}
    found: list[str] = []
    for argument in arguments:
        name, _, value = argument.partition("=")
        found += [name, *listed(value)] if name in known else [argument]
    return found


def listed(text: str) -> tuple[str, ...]:
    """ "a, b" → ("a", "b")."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def changed(options: Any) -> list[str]:
    """The words that set what in a dataclass without groups is not at its default."""
    words = []
    for one in fields(options):
        if (value := getattr(options, one.name)) != one.default:
            words += [flag(one)] + ([] if value is True else [str(value)])
    return words


def _values(options: Any) -> dict[str, float]:
    """How many words follow each option."""
    found: dict[str, float] = {"--help": 0}
    for one in fields(options):
        value = getattr(options, one.name)
        found |= _values(value) if is_dataclass(value) else {_flag(flat_name(one), value): _words(plain(one.type))}
    return found


def _words(kind: Any) -> float:
    """None for a flag, as many as a tuple is long, any number for an open one, and else one."""
    for inner in (kind, *get_args(kind)):
        if get_origin(inner) is tuple:
            return inf if ... in get_args(inner) else len(get_args(inner))
    return 0 if kind is bool else 1


def _wrapped(description: str) -> str:
    """Paragraphs of short lines; tyro joins lines that begin with a letter, so all but the first are indented."""
    parts = description.split("\n\n")
    return "\n\n".join(fill(part, WIDTH, subsequent_indent="  ", break_on_hyphens=False) for part in parts)


def _near(option: str, known: set[str]) -> str:
    hint = nearest(option, known)
    return hint if "Did you mean" in hint else " See --help for all."


def _one_line(panel: str) -> str:
    """The message in tyro's panel: above its first rule, or below it where the title has no frame to stand in."""
    framed = "╭" in panel
    lines = [re.sub(r"^│\s?|\s*│$", "", line).strip() for line in panel.splitlines() if not re.match(r"[╭╰]", line)]
    sections = re.split(r"\n[─-]+\n", "\n".join(lines))
    message = sections[0] if framed else (sections + [""])[1]
    return " ".join(message.split()) or "These options do not fit."


def say(line: str = "") -> None:
    """One line for the person at the screen."""
    print(line, flush=True, file=sys.stdout)


def silent(line: str = "") -> None:
    """Nothing, from the processes beside the first."""
