"""``mapet masks``: the class of each pixel of images."""

from dataclasses import dataclass, field

from mapet.api.masks import masks
from mapet.cli.options import parse, require
from mapet.cli.output import made
from mapet.cli.use import OF_IMAGES, continued, images_of
from mapet.config.use import MasksSettings

ABOUT = f"""Write the class of each pixel of each image into a PNG file, or print the share of each class.

SEGMENTATION is a run of mapet segment, or an export of one.

{OF_IMAGES}"""


@dataclass(frozen=True)
class Options:
    """Options of ``mapet masks``."""

    run: str = ""
    """SEGMENTATION: a run of mapet segment, or an export of one."""
    images: str = ""
    """A folder of images, nested in any way, a packed folder, cifar10, a file, or - for a list on standard input."""
    out: str | None = None
    """Folder for the masks, at the paths of the images; must be empty or absent. None: print the shares."""
    settings: MasksSettings = field(default_factory=MasksSettings)


def command(arguments: list[str]) -> int:
    """Parse, segment, print how many masks there are, or the share of each class."""
    o = parse(Options(), arguments, "masks SEGMENTATION IMAGES", ABOUT)
    require("masks", run=o.run, images=o.images)
    found = continued(lambda: masks(o.run, images_of(o.images), o.out, settings=o.settings))
    if found is None:
        return 130
    if o.out:
        made(found)
        print(f"{len(found):,} masks in {o.out}")
        return 0
    import numpy as np

    shares = {}
    for one in found:
        counts = np.bincount(one.labels.flat, minlength=len(found.classes)) / one.labels.size
        there = {found.classes[i]: float(counts[i]) for i in counts.argsort()[::-1] if counts[i]}
        print(f"{one.image_id}  {', '.join(f'{name} {100 * share:.1f} %' for name, share in there.items())}")
        shares[one.image_id] = there
    made(shares)
    return 0
