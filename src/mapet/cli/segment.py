"""``mapet segment``: a pre-trained encoder and pairs of images and masks in, a segmentation model and its mIoU out."""

from dataclasses import dataclass, field

from mapet.api.segment import named_segmentation, segment
from mapet.cli.training import train_from
from mapet.config.runtime import Runtime
from mapet.config.segmentation import SegmentRecipe

ABOUT = """Train UPerNet on a segmentation set, starting from FROM, and print its mIoU.

FROM is a run, an export folder, an official-format checkpoint, a timm model, or random.

--recipe NAME (or FILE.yaml) sets the defaults of all other options.

--resume OUT continues an interrupted training; with --data, if the images lie elsewhere now."""


@dataclass(frozen=True)
class Options:
    """Options of ``mapet segment FROM``."""

    out: str = ""
    """Folder for the run; must be empty or absent."""
    overwrite: bool = False
    """Replace the run in the folder once this one trains; only files that mapet wrote are deleted."""
    evaluate_every: int = 0
    """Test after every so many epochs, and at the end; 0: at the end only."""
    recipe: SegmentRecipe = field(default_factory=SegmentRecipe)
    runtime: Runtime = field(default_factory=Runtime)


def command(arguments: list[str]) -> int:
    """Parse, then train or resume."""
    return train_from(arguments, Options, "recipe", named_segmentation, segment, "segment", ABOUT)
