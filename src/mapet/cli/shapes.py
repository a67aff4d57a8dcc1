"""``mapet shapes``: compose a segmentation set."""

from dataclasses import dataclass, field

from mapet.api.shapes import shapes
from mapet.cli.options import parse, require
from mapet.cli.output import made
from mapet.config.segmentation import ShapesSettings

ABOUT = """Compose a segmentation set in ADE20K's layout: images with alpha over photographs.

The sub-folders of SHAPES are the classes; a shape or photograph appears in one split only."""


@dataclass(frozen=True)
class Options:
    """Options of ``mapet shapes``."""

    shapes: str = ""
    """Folder whose sub-folders are classes of images with alpha."""
    photographs: str = ""
    """Folder of photographs."""
    out: str = ""
    """New or empty folder for the set."""
    settings: ShapesSettings = field(default_factory=ShapesSettings)


def command(arguments: list[str]) -> int:
    """Parse, compose, print where."""
    o = parse(Options(), arguments, "shapes SHAPES PHOTOGRAPHS", ABOUT)
    require("shapes", shapes=o.shapes, photographs=o.photographs, out=o.out)
    folder, s = made(shapes(o.shapes, o.photographs, o.out, settings=o.settings)), o.settings
    print(f"{s.train:,} training and {s.test:,} validation images, {s.classes} classes and background: {folder}")
    return 0
