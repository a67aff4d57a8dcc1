"""``mapet check``: verify a folder that mapet wrote."""

from dataclasses import dataclass

from mapet.api.check import check
from mapet.cli.options import parse, require
from mapet.cli.output import made


@dataclass(frozen=True)
class Options:
    """Options of ``mapet check FOLDER``."""

    folder: str = ""
    """A run, tokens, a tokenizer, a pack or an export."""


def command(arguments: list[str]) -> int:
    """Parse, verify, print one line per part; exit code 1 if one is damaged."""
    o = parse(Options(), arguments, "check", "Verify all files of a folder that mapet wrote.")
    require("check", folder=o.folder)
    found = made(check(o.folder))
    for part, fault in found.items():
        print(f"{'damaged' if fault else 'valid':<10}{part}{f': {fault}' if fault else ''}")
    return int(any(found.values()))
