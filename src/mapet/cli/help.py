"""The short help of a verb: what people use, on one screen."""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal, get_args, get_origin

from mapet.cli.options import Leaf, Preset, Resume, leaves, plain_type
from mapet.cli.verbs import VERBS, Verb

SCREEN = 40  # lines
INDENT = 26  # column of the explanations
METAVARS = {int: "INT", float: "FLOAT", bool: ""}


def short_help(default: Any, verb: str, description: str, columns: int) -> str:
    """Usage, the common options with their defaults, and an example."""
    about, known = VERBS[verb], {one.name: one for one in leaves(default)}
    every = {one.name: one for one in (*leaves(Preset()), *leaves(Resume()))} | known
    shown = [every[name] for name in about.common.split() if name in every] or list(known.values())
    shown.sort(key=lambda one: (_word(one, about) is None, not _required(one, about)))
    lines = [
        *wrap(f"usage: mapet {about.usage} [options]", columns, subsequent_indent="  "),
        "",
        *wrap(" ".join(description.split("\n\n")[0].split()), columns),
        "",
    ]
    after = ["", "examples:", *(f"  {line}" for line in about.example.splitlines())] if about.example else []
    after += ["", f"mapet {verb} --help-all lists all {len(known)} options."]
    options = [line for one in shown for line in _lines(one, about, columns)]
    if len(lines + options + after) > SCREEN:
        options = [line for one in shown for line in _lines(one, about, columns, end=";")]
    return "\n".join(lines + options + after)


@cache
def field_help(owner: type) -> dict[str, str]:
    """The string below each field of a class, by the field's name."""
    found: dict[str, str] = {}
    for kind in reversed(owner.__mro__):
        if kind is not object:
            found |= dict(_documented(kind))
    return found


def _documented(kind: type) -> Iterator[tuple[str, str]]:
    for one, after in pairwise(_classes(kind.__module__).get(kind.__name__, [])):
        text = after.value if isinstance(after, ast.Expr) else None
        if isinstance(one, ast.AnnAssign) and isinstance(text, ast.Constant) and isinstance(one.target, ast.Name):
            yield one.target.id, " ".join(str(text.value).split())


@cache
def _classes(module: str) -> dict[str, list[ast.stmt]]:
    """The statements of each class of a module, by the class's name."""
    source = Path(sys.modules[module].__file__ or "").read_text(encoding="utf-8")
    return {node.name: node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}


def _lines(one: Leaf, about: Verb, columns: int, end: str = "") -> list[str]:
    """One option: its form, and the first sentence of its help, if needed only up to a semicolon."""
    text = re.split(r"(?<=[^.])\.(?: |$)" + (f"|{end} " if end else ""), field_help(one.owner).get(one.field, ""))[0]
    word, notes = _word(one, about), []
    if _required(one, about):
        notes.append("required")
    elif one.default not in (None, "", ()) and not isinstance(one.default, bool):
        value = " ".join(map(str, one.default)) if isinstance(one.default, tuple) else one.default
        notes.append(f"default: {value}")
    if word:
        notes.append(f"also --{_option(one)}")
    text += f" ({'; '.join(notes)})" if notes else ""
    form = f"  {word or f'{one.flag} {_metavar(one, about)}'}".rstrip()
    wrapped = wrap(text, max(20, columns - INDENT)) or [""]
    if len(form) > INDENT - 2:
        return [form, *(" " * INDENT + line for line in wrapped)]
    return [f"{form:<{INDENT}}{wrapped[0]}".rstrip(), *(" " * INDENT + line for line in wrapped[1:])]


def _word(one: Leaf, about: Verb) -> str | None:
    return next((word for word, name in about.words.items() if name == one.name), None)


def _required(one: Leaf, about: Verb) -> bool:
    return f"--{_option(one)}" in about.required or _word(one, about) in about.required


def _option(one: Leaf) -> str:
    return one.name.replace("_", "-")


def _metavar(one: Leaf, about: Verb) -> str:
    kind = plain_type(one.hint)
    if named := re.search(rf"--{_option(one)} ([A-Z]+)", about.usage):
        return named[1]
    if get_origin(kind) is Literal:
        choices = "|".join(map(str, get_args(kind)))
        return choices if len(choices) <= INDENT else "NAME"
    if get_origin(kind) is tuple:
        part = METAVARS.get(get_args(kind)[0], "TEXT")
        return f"{part} ..." if ... in get_args(kind) else " ".join([part] * len(get_args(kind)))
    return METAVARS.get(kind, "TEXT")
