"""Settings of ``validate`` and ``robustness``."""

from typing import Annotated, Literal

from pydantic import Field

from mapet.config.setting import Listed, Option, PathText, Seed, Share, require, settings
from mapet.config.use import ReadingSettings
from mapet.utils.errors import nearest

CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
Severity = Annotated[int, Field(ge=1, le=5)]


@settings
class ValidateSettings(ReadingSettings):
    """Settings of ``validate``."""

    split: Annotated[Literal["train", "test"] | None, Option(common=True)] = None
    """Split of cifar10 or a folder; None: the held-out one, or all images of a folder without one."""
    max_bad_fraction: Share = 0.01
    """Largest fraction of images that may be unreadable."""
    crop_pct: Annotated[float | None, Field(gt=0, le=1), Option(common=True)] = None
    """Share of the shorter side that is cropped, centred; None: the classifier's own."""
    subset: Annotated[bool, Option(common=True)] = True
    """Compare only the logits of the classes that the images have, as for ImageNet-A and -R."""
    real: Annotated[PathText | None, Option(common=True)] = None
    """JSON file with several correct classes for each image, as ReaL's real.json; images without any do not count."""


@settings
class RobustnessSettings(ValidateSettings):
    """Settings of ``robustness``."""

    corruptions: Annotated[Listed[str], Option(common=True)] = ()
    """Corruptions of ImageNet-C to make on the fly, separated by commas, or all."""
    severities: Annotated[Listed[Severity], Field(min_length=1), Option(common=True)] = (1, 2, 3, 4, 5)
    """Strengths of the corruptions, separated by commas."""
    seed: Annotated[Seed, Option(common=True)] = 0
    """Random seed of the corruptions."""

    def __post_init__(self) -> None:
        known = (*CORRUPTIONS, "all")
        require(*((one in known, f'There is no corruption "{one}".{nearest(one, known)}') for one in self.corruptions))

    @property
    def chosen(self) -> tuple[str, ...]:
        """The corruptions by name, in ImageNet-C's sequence."""
        return tuple(name for name in CORRUPTIONS if name in self.corruptions or "all" in self.corruptions)
