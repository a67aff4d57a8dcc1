"""``mapet predict``: the classes of images."""

from dataclasses import dataclass, field

from mapet.api.predict import predict
from mapet.cli.options import parse, require
from mapet.cli.output import made
from mapet.cli.use import OF_IMAGES, continued, images_of
from mapet.config.use import PredictSettings

ABOUT = f"""Write the most probable classes of each image, with probabilities, into a CSV file, or print them.

CLASSIFIER is a fine-tuning, an export of one, or a checkpoint file with a head.

{OF_IMAGES}"""


@dataclass(frozen=True)
class Options:
    """Options of ``mapet predict``."""

    run: str = ""
    """CLASSIFIER: a fine-tuning, an export of one, or a checkpoint file with a head."""
    images: str = ""
    """A folder of images, nested in any way, a packed folder, cifar10, a file, or - for a list on standard input."""
    out: str | None = None
    """CSV file to write, with a line for each image; None: print the predictions."""
    overwrite: bool = False
    """Replace an earlier file of predictions."""
    settings: PredictSettings = field(default_factory=PredictSettings)


def command(arguments: list[str]) -> int:
    """Parse, predict, print the predictions or how many there are."""
    o = parse(Options(), arguments, "predict CLASSIFIER IMAGES", ABOUT)
    require("predict", run=o.run, images=o.images)
    found = continued(lambda: predict(o.run, images_of(o.images), o.out, overwrite=o.overwrite, settings=o.settings))
    if found is None:
        return 130
    made(found if o.out else list(found))
    if o.out:
        print(f"{len(found):,} predictions in {o.out}")
        return 0
    for one in found:
        pairs = zip(one.classes, one.probabilities, strict=True)
        print(f"{one.image_id}  {', '.join(f'{name} {100 * share:.1f} %' for name, share in pairs)}")
    return 0
