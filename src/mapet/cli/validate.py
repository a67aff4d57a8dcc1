"""``mapet validate``: accuracy and calibration of a classifier."""

from dataclasses import dataclass, field

from mapet.api.validate import Validation, validate
from mapet.cli.options import parse, require
from mapet.cli.output import made
from mapet.config.validate import ValidateSettings

ABOUT = """Accuracy and calibration of a classifier on labelled images.

CLASSIFIER is a fine-tuning, an export of one, a checkpoint file with a head (MaPeT's published ones), or a timm model.

Sub-folders of DATA are named as the classes, by ImageNet's synsets, or by the classes' numbers."""


@dataclass(frozen=True)
class Options:
    """Options of ``mapet validate``."""

    run: str = ""
    """CLASSIFIER: a fine-tuning, an export of one, a checkpoint file with a head, or a timm model."""
    data: str = ""
    """Labelled images: a folder with one sub-folder per class, split into train and test or not, or cifar10."""
    settings: ValidateSettings = field(default_factory=ValidateSettings)


def command(arguments: list[str]) -> int:
    """Parse, measure, print."""
    o = parse(Options(), arguments, "validate CLASSIFIER", ABOUT)
    require("validate", run=o.run, data=o.data)
    show(made(validate(o.run, o.data, settings=o.settings)))
    return 0


def show(found: Validation) -> None:
    """Print protocol, scores and calibration error."""
    print(f"protocol  {found.protocol}")
    for name, score in found.scores.items():
        print(f"{name:<9} {score} of {score.count:,} images")
    print(f"ECE       {100 * found.ece:.1f} % (15 bins)")
