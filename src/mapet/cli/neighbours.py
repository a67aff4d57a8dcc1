"""``mapet neighbours``: the images nearest to one image."""

from dataclasses import dataclass, field
from typing import Annotated

from mapet.api.encoders import KINDS
from mapet.api.neighbours import neighbours
from mapet.cli.options import parse, require
from mapet.cli.output import made
from mapet.config.setting import Option
from mapet.config.use import NeighboursSettings

ABOUT = f"""Print the images whose features are nearest to those of IMAGE, by cosine, and draw them.

FROM is {KINDS}; it must be what made the features."""


@dataclass(frozen=True)
class Options:
    """Options of ``mapet neighbours``."""

    run: str = ""
    """FROM: a run or export folder, or an official-format checkpoint."""
    image: str = ""
    """The image, a file."""
    features: Annotated[str, Option(name="in")] = ""
    """File of features that mapet embed wrote."""
    out: str | None = None
    """PNG or SVG file for a contact sheet; None: none."""
    overwrite: bool = False
    """Replace an earlier contact sheet."""
    settings: NeighboursSettings = field(default_factory=NeighboursSettings)


def command(arguments: list[str]) -> int:
    """Parse, search, print one line per neighbour."""
    o = parse(Options(), arguments, "neighbours FROM IMAGE", ABOUT)
    require("neighbours", run=o.run, image=o.image, **{"in": o.features})
    for one in made(neighbours(o.run, o.image, o.features, o.out, overwrite=o.overwrite, settings=o.settings)):
        print(f"{one.similarity:.4f}  {one.image_id}")
    if o.out:
        print(f"sheet in {o.out}")
    return 0
