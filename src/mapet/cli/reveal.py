"""``mapet reveal``: what a model believes of hidden patches."""

from dataclasses import dataclass, field

from mapet.api.reveal import reveal_image
from mapet.cli.options import parse, require
from mapet.cli.output import made
from mapet.config.use import RevealSettings

ABOUT = """Reveal an image patch by patch and draw, at each step, what the model of RUN believes of the rest.

RUN is the folder of a pre-training of mapet, pet or mim. Codes are drawn by their typical patch."""


@dataclass(frozen=True)
class Options:
    """Options of ``mapet reveal``."""

    run: str = ""
    """Folder of the run."""
    image: str = ""
    """The image, a file."""
    out: str = ""
    """PNG or SVG file to write."""
    overwrite: bool = False
    """Replace an earlier figure."""
    settings: RevealSettings = field(default_factory=RevealSettings)


def command(arguments: list[str]) -> int:
    """Parse, draw, print the accuracy of each frame."""
    o = parse(Options(), arguments, "reveal RUN IMAGE", ABOUT)
    require("reveal", run=o.run, image=o.image, out=o.out)
    found = made(reveal_image(o.run, o.image, o.out, overwrite=o.overwrite, settings=o.settings))
    for given, accuracy in zip(found.given, found.accuracy, strict=True):
        print(f"{given:>4} of {found.tokens.shape[1]} patches given: {accuracy:.1%} of the others' tokens predicted")
    print(f"figure in {o.out}")
    return 0
