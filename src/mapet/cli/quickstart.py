"""``mapet quickstart``: from nothing to a pre-trained encoder, its scores and its figures."""

import shlex
from dataclasses import dataclass, field

from mapet.cli.options import changed, parse
from mapet.cli.output import made
from mapet.config.quickstart import QuickstartSettings


@dataclass(frozen=True)
class Options:
    """Options of ``mapet quickstart``."""

    out: str = "quickstart"
    """Folder for everything; one that was interrupted is resumed."""
    settings: QuickstartSettings = field(default_factory=QuickstartSettings)


def command(arguments: list[str]) -> int:
    """Parse, run, print."""
    from mapet.cli.training import stoppable

    o = parse(Options(), arguments, "quickstart", "CIFAR-10 from nothing to a pre-trained encoder and its scores.")
    return stoppable(lambda: _run(o), shlex.join(["mapet", "quickstart", "--out", o.out, *changed(o.settings)]))


def _run(o: Options) -> None:
    from mapet.api.quickstart import quickstart
    from mapet.interop.card import loading_lines

    result = made(quickstart(o.out, settings=o.settings))
    figures = ", ".join(map(str, result.figures))
    print(f"\n{result}\n\nfigures   {figures}, and as .svg\nreport    {result.report}\n")
    print(f"Load the encoder anywhere:\n{loading_lines(result.export)}")
