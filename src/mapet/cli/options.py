"""Options from dataclasses, by tyro; a mistake becomes one line with the nearest name."""

import io
import re
import sys
from contextlib import redirect_stderr
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from mapet.errors import MapetError, nearest

T = TypeVar("T")


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
                description=description,
                config=config,
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise MapetError(f"{_one_line(said.getvalue())} See mapet {verb} --help.") from None


def names(value: Any) -> set[str]:
    """All options of nested dataclasses, as ``--kebab-case``."""
    found: set[str] = set()
    for one in fields(value):
        inner = getattr(value, one.name)
        found |= names(inner) if is_dataclass(inner) else {f"--{one.name.replace('_', '-')}"}
    return found


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


def _near(option: str, known: set[str]) -> str:
    hint = nearest(option, known)
    return hint if "Did you mean" in hint else " See --help for all."


def _one_line(panel: str) -> str:
    """The message inside tyro's panel, above its first rule."""
    lines = [re.sub(r"^│\s?|\s*│$", "", line) for line in panel.splitlines()]
    body = [line for line in lines if line and not re.match(r"^[╭╰]", line)]
    stop = next((i for i, line in enumerate(body) if set(line.strip()) == {"─"}), len(body))
    return " ".join(" ".join(body[:stop]).split()) or "These options do not fit."


def say(line: str = "") -> None:
    """One line for the person at the screen."""
    print(line, flush=True, file=sys.stdout)
