"""``mapet embed``: features of images."""

from dataclasses import dataclass, field

from mapet.api.embed import embed
from mapet.api.encoders import KINDS
from mapet.cli.options import parse, require
from mapet.cli.output import made
from mapet.cli.use import OF_IMAGES, continued, images_of
from mapet.config.use import EmbedSettings

ABOUT = f"""Write one vector per image, or one per patch, into a .npz or .parquet file.

FROM is {KINDS}.

{OF_IMAGES}"""


@dataclass(frozen=True)
class Options:
    """Options of ``mapet embed``."""

    run: str = ""
    """FROM: a run or export folder, or an official-format checkpoint."""
    images: str = ""
    """A folder of images, nested in any way, a packed folder, cifar10, a file, or - for a list on standard input."""
    out: str = ""
    """File to write, .npz or .parquet."""
    overwrite: bool = False
    """Replace an earlier file of features."""
    settings: EmbedSettings = field(default_factory=EmbedSettings)


def command(arguments: list[str]) -> int:
    """Parse, embed, print what the file holds."""
    o = parse(Options(), arguments, "embed FROM IMAGES", ABOUT)
    require("embed", run=o.run, images=o.images, out=o.out)
    found = continued(lambda: embed(o.run, images_of(o.images), o.out, overwrite=o.overwrite, settings=o.settings))
    if found is None:
        return 130
    made(found)
    print(f"{len(found):,} images × {' × '.join(map(str, found.about['shape']))} in {o.out}")
    return 0
