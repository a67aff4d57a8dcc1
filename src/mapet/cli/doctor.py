"""``mapet doctor``: what this machine offers, and what will not work."""

from dataclasses import dataclass
from textwrap import fill

from mapet.api.doctor import doctor
from mapet.cli.options import parse
from mapet.cli.output import made


@dataclass(frozen=True)
class Options:
    """``mapet doctor`` has no options."""


def command(arguments: list[str]) -> int:
    """Look, print; also problems, with exit code 0: it looked."""
    parse(Options(), arguments, "doctor", "What this machine offers to mapet, and what will not work.")
    found = made(doctor())
    for one in found:
        print(fill(f"{one.topic:<10} {one.found}", 80, subsequent_indent=" " * 11))
        if one.problem:
            print(fill(f"problem: {one.problem}", 80, initial_indent=" " * 11, subsequent_indent=" " * 13))
    return 0
