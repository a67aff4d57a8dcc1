"""Words and single options that a verb reads before ``parse``; ``given`` makes them unnecessary."""

from dataclasses import fields, is_dataclass
from math import inf
from typing import Any, get_args, get_origin

from mapet.config.setting import flag, plain
from mapet.utils.errors import MapetError


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


def _values(options: Any) -> dict[str, float]:
    """How many words follow each option."""
    found: dict[str, float] = {"--help": 0, "--help-all": 0}
    for one in fields(options):
        value = getattr(options, one.name)
        option = flag(one).replace("--", "--no-" if value is True else "--", 1)
        found |= _values(value) if is_dataclass(value) else {option: _words(plain(one.type))}
    return found


def _words(kind: Any) -> float:
    """None for a flag, as many as a tuple is long, any number for an open one, and else one."""
    for inner in (kind, *get_args(kind)):
        if get_origin(inner) is tuple:
            return inf if ... in get_args(inner) else len(get_args(inner))
    return 0 if kind is bool else 1
