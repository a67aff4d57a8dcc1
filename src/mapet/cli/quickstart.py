"""``mapet quickstart``: from nothing to a pre-trained encoder, its numbers and its images."""

import shlex
from typing import TYPE_CHECKING

from mapet.cli.options import changed, parse

if TYPE_CHECKING:
    pass
from mapet.api.quickstart import Options, quickstart


def command(arguments: list[str]) -> int:
    """Parse, train, evaluate, draw, export."""
    from mapet.cli.training import stoppable

    o = parse(Options(), arguments, "quickstart", "CIFAR-10 from nothing to a pre-trained encoder and its numbers.")
    return stoppable(lambda: quickstart(o), shlex.join(["mapet", "quickstart", *changed(o)]))
