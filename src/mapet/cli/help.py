"""The short help of a verb: what people use, on one screen."""

import ast
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from functools import cache
from io import StringIO
from itertools import pairwise
from pathlib import Path
from textwrap import fill, shorten, wrap
from typing import Annotated, Any, Literal, get_args, get_origin

from mapet.cli.options import Leaf, Preset, Resume, leaves, plain_type, table
from mapet.cli.verbs import VERBS, Verb

SCREEN = 40  # lines
INDENT = 26  # column of the explanations
METAVARS = {int: "INT", float: "FLOAT", bool: ""}


def short_help(default: Any, verb: str, description: str, columns: int) -> str:
    """Usage, the common options with their defaults, and an example."""
    about, known = VERBS[verb], {one.name: one for one in leaves(default)}
    every = {one.name: one for one in (*leaves(Preset()), *leaves(Resume()))} | known
    common = [name for name, one in known.items() if one.common]
    names = [name for word in about.common.split() for name in (common if word == "settings" else [word])]
    shown = [every[name] for name in dict.fromkeys(names) if name in every] or list(known.values())
    shown.sort(key=lambda one: (_word(one, about) is None, not _required(one, about)))
    lines = [
        *wrap(f"usage: mapet {about.usage} [options]", columns, subsequent_indent="  "),
        "",
        *wrap(" ".join(description.split("\n\n")[0].split()), columns),
        "",
    ]
    after = ["", "examples:", *(f"  {line}" for line in about.example.splitlines())] if about.example else []
    if not known:
        return "\n".join([*lines, f"mapet {verb} has no options.", *after])
    after += ["", f"mapet {verb} --help-all lists all {len(known)} options."]
    for length in (2**9, 2 * (columns - INDENT), columns - INDENT):
        options = [line for one in shown for line in _lines(one, about, columns, length)]
        if len(lines + options + after) <= SCREEN:
            break
    return "\n".join(lines + options + after)


def print_full_help(default: Any, verb: str, description: str, columns: int) -> None:
    """Print tyro's table of all options; the short help where there are none."""
    import tyro

    if not list(leaves(default)):
        print(short_help(default, verb, description, columns))
        return
    parts = [fill(part, columns, subsequent_indent="  ", break_on_hyphens=False) for part in description.split("\n\n")]
    description = "\n\n".join(parts)  # tyro joins lines that begin with a letter
    flags: Any = {one.name: one.default for one in leaves(default) if isinstance(one.default, bool)}
    hints = {
        one.name: Annotated[
            str if one.form else one.hint,
            tyro.conf.arg(
                metavar=one.form,
                help=_text(one),
                help_behavior_hint="" if one.name in flags else f"(default: {_shown(one)})",
            ),
        ]
        for one in leaves(default)
    }
    config, out = (tyro.conf.FlagCreatePairsOff,), StringIO()
    with suppress(SystemExit), redirect_stdout(out):
        tyro.cli(table(hints), args=["--help"], default=flags, prog=f"mapet {verb}", config=config,
                 description=description)  # fmt: skip
    usage = "\n".join(wrap(f"usage: mapet {VERBS[verb].usage} [options]", columns, subsequent_indent="  "))
    rest = out.getvalue().partition("\n\n")[2].rstrip()
    print(f"{usage}\n\n{rest}")  # tyro does not break the line of usage


def _shown(one: Leaf) -> str:
    values = one.default if isinstance(one.default, tuple) else (one.default,)
    return ("," if one.form else " ").join(str(value).removesuffix(".0") for value in values)


def _text(one: Leaf) -> str:
    """The help of an option; --no-NAME turns off what the field's help describes."""
    text = field_help(one.owner).get(one.field, "")
    return f"Turn off: {text}" if one.default is True and text else text


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


def _lines(one: Leaf, about: Verb, columns: int, length: int) -> list[str]:
    """One option: its form, and the first sentence of its help, or less of it to have at most ``length`` characters."""
    text = re.split(r"(?<=[^.])\.(?: |$)", _text(one))[0]
    word, notes = _word(one, about), []
    if _required(one, about):
        notes.append("required")
    elif one.default not in (None, "", ()) and not isinstance(one.default, bool):
        notes.append(f"default: {_shown(one)}")
    if word:
        notes.append(f"also {one.option}")
    note = f" ({'; '.join(notes)})" if notes else ""
    if len(text + note) > length:
        text = shorten(text.split("; ")[0], max(20, length - len(note)), placeholder=" …")
    text += note
    form = f"  {word or f'{one.flag} {_metavar(one, about)}'}".rstrip()
    wrapped = wrap(text, max(20, columns - INDENT)) or [""]
    if len(form) > INDENT - 2:
        return [form, *(" " * INDENT + line for line in wrapped)]
    return [f"{form:<{INDENT}}{wrapped[0]}".rstrip(), *(" " * INDENT + line for line in wrapped[1:])]


def _word(one: Leaf, about: Verb) -> str | None:
    return next((word for word, name in about.words.items() if name == one.name), None)


def _required(one: Leaf, about: Verb) -> bool:
    return one.option in about.required or _word(one, about) in about.required


def _metavar(one: Leaf, about: Verb) -> str:
    kind = plain_type(one.hint)
    if one.form:
        return one.form if len(one.form) <= INDENT else "NAME,..."
    if named := re.search(rf"{one.option} ([A-Z]+)", about.usage):
        return named[1]
    if get_origin(kind) is Literal:
        choices = "|".join(map(str, get_args(kind)))
        return choices if len(choices) <= INDENT else "NAME"
    if get_origin(kind) is tuple:
        part = METAVARS.get(get_args(kind)[0], "TEXT")
        return f"{part} ..." if ... in get_args(kind) else " ".join([part] * len(get_args(kind)))
    return METAVARS.get(kind, "TEXT")
