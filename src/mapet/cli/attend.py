"""``mapet attend``: where an encoder looks."""

from dataclasses import dataclass, field

from mapet.api.attend import attend
from mapet.api.encoders import KINDS
from mapet.cli.options import parse, require
from mapet.cli.output import made
from mapet.cli.use import images_of
from mapet.config.use import AttendSettings

ABOUT = f"""Draw attention of CLS, attention rollout, principal components of the patches and similarity to one patch.

FROM is {KINDS}. IMAGES is a folder, a file, or - for paths on standard input, one a line; at most 64 images."""


@dataclass(frozen=True)
class Options:
    """Options of ``mapet attend``."""

    run: str = ""
    """FROM: a run or export folder, an official-format checkpoint, or a timm model."""
    images: str = ""
    """A folder of images, a file, or - for a list on standard input."""
    out: str = ""
    """PNG or SVG file to write."""
    overwrite: bool = False
    """Replace an earlier figure."""
    settings: AttendSettings = field(default_factory=AttendSettings)


def command(arguments: list[str]) -> int:
    """Parse, draw, print where."""
    o = parse(Options(), arguments, "attend FROM IMAGES", ABOUT)
    require("attend", run=o.run, images=o.images, out=o.out)
    found = made(attend(o.run, images_of(o.images), o.out, overwrite=o.overwrite, settings=o.settings))
    print(f"{len(found.image_ids)} images, heads of block {found.block}: figure in {o.out}")
    return 0
