"""``mapet list``: the names of models, objectives, recipes, teachers and protocols."""

from dataclasses import dataclass
from textwrap import wrap
from typing import Literal

from mapet.api.listing import listing
from mapet.cli.options import parse, require
from mapet.cli.output import made

ABOUT = "List the models, objectives, recipes, teachers or evaluation protocols by name."


@dataclass(frozen=True)
class Options:
    """Options of ``mapet list WHAT``."""

    what: Literal["models", "objectives", "recipes", "teachers", "protocols"] | None = None
    """models, objectives, recipes, teachers or protocols."""


def command(arguments: list[str]) -> int:
    """Parse, list."""
    o = parse(Options(), arguments, "list", ABOUT)
    require("list", what=o.what)
    found = made(listing(o.what or ""))
    column = 2 + max(map(len, found)) if any(found.values()) else 0
    for name, about in found.items():
        first, *rest = wrap(about, max(20, 80 - column)) or [""]
        print(f"{name:<{column}}{first}".rstrip())
        for line in rest:
            print(f"{'':<{column}}{line}")
    return 0
