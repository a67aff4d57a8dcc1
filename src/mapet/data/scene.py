"""Augmentation for segmentation as in mmsegmentation: one crop of image and mask, a pure function of its seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mapet.data.augment import IMAGENET_MEAN
from mapet.data.crop import Transform
from mapet.data.policy import seeded
from mapet.utils.rng import random_bits, uniform
from mapet.utils.view import CenterCropResize

if TYPE_CHECKING:
    from PIL import Image

SCENE, DRAW = 0x5CE4E, 0x5CE4F  # salts
CANDIDATES = 10
VOID = 255  # alpha of ignored pixels
MASK = "nearest"  # interpolation of the view that shows targets


@dataclass(frozen=True)
class Scenes:
    """Random scale, crop, flip and photometric distortion of images whose alpha channel holds their targets.

    The view with the interpolation "nearest" shows the targets, any other one the image.

    Attributes:
        seed: random seed.
        scale: bounds of the shorter side in sides of the crop, uniform; the longer side has at most four times as many.
        hflip: probability of a horizontal flip.
        photometric: whether brightness (± 12.5 %), contrast and saturation (± 50 %) and hue (± 0.1 of the circle)
            change, each with probability 0.5.
        cat_max_ratio: a crop of which one class covers more than this is drawn anew, up to nine times.
    """

    seed: int
    scale: tuple[float, float] = (0.5, 2.0)
    hflip: float = 0.5
    photometric: bool = True
    cat_max_ratio: float = 0.75

    @property
    def whole(self) -> bool:
        """False."""
        return False

    def __call__(self, epoch: int, indices: Sequence[int]) -> list[Transform]:
        """The transforms of the images at ``indices``: pure functions of (seed, epoch, index)."""
        seeds = random_bits(self.seed, SCENE, epoch, torch.tensor(indices, dtype=torch.int64)).tolist()
        return [partial(self._transform, seed) for seed in seeds]

    def _transform(self, seed: int, image: "Image.Image", view: CenterCropResize) -> "Image.Image":
        from PIL import Image, ImageOps

        size, draws = view.size, uniform(seed, DRAW, torch.arange(2 + 2 * CANDIDATES)).tolist()
        full = self._scaled((image.height, image.width), size, draws[0])
        mask = image.getchannel("A")
        corner = self._corner(mask, full, size, draws[2:])
        if view.interpolation == MASK:
            found = Image.merge("RGB", [_cropped(mask, full, size, corner, Image.Resampling.NEAREST, VOID)] * 3)
        else:
            fill = tuple(round(255 * part) for part in IMAGENET_MEAN)
            found = _cropped(image.convert("RGB"), full, size, corner, Image.Resampling.BILINEAR, fill)
            if self.photometric:
                with seeded(seed):
                    found = distortion()(found)
        return ImageOps.mirror(found) if draws[1] < self.hflip else found

    def _scaled(self, image: tuple[int, int], size: tuple[int, int], draw: float) -> tuple[int, int]:
        """(height, width) of the whole image when it is scaled."""
        wanted = min(size) * (self.scale[0] + (self.scale[1] - self.scale[0]) * draw)
        factor = min(wanted / min(image), 4 * wanted / max(image))
        return max(1, round(image[0] * factor)), max(1, round(image[1] * factor))

    def _corner(
        self, mask: "Image.Image", full: tuple[int, int], size: tuple[int, int], draws: list[float]
    ) -> tuple[int, int]:
        """(top, left) of the first crop that is not all one class, or of the last candidate."""
        from PIL import Image

        corner = 0, 0
        for y, x in zip(draws[::2], draws[1::2], strict=True):
            corner = int(y * max(1, full[0] - size[0] + 1)), int(x * max(1, full[1] - size[1] + 1))
            part = np.asarray(_cropped(mask, full, size, corner, Image.Resampling.NEAREST, VOID))
            counts = np.bincount(part[part != VOID], minlength=1)
            if (counts > 0).sum() > 1 and counts.max() <= self.cat_max_ratio * counts.sum():
                break
        return corner


def _cropped(
    image: "Image.Image", full: tuple[int, int], size: tuple[int, int], corner: tuple[int, int], method: Any, fill: Any
) -> "Image.Image":
    """A crop of ``size`` at ``corner`` of the image scaled to ``full``; filled where the image ends."""
    from PIL import Image

    height, width = (min(length, side) for length, side in zip(full, size, strict=True))
    rows, columns = image.height / full[0], image.width / full[1]
    box = (
        corner[1] * columns,
        corner[0] * rows,
        min(image.width, (corner[1] + width) * columns),
        min(image.height, (corner[0] + height) * rows),
    )
    part = image.resize((width, height), method, box)
    if (height, width) == size:
        return part
    canvas = Image.new(image.mode, (size[1], size[0]), fill)
    canvas.paste(part)
    return canvas


@lru_cache(maxsize=1)
def distortion() -> "Callable[[Image.Image], Image.Image]":
    """Photometric distortion by torchvision, in SSD's sequence (arXiv 1512.02325); draws from torch's generator."""
    from torchvision.transforms import ColorJitter, Compose, RandomApply

    jitters = [{"brightness": 0.125}, {"contrast": 0.5}, {"saturation": 0.5}, {"hue": 0.1}]
    return Compose([RandomApply([ColorJitter(**one)], 0.5) for one in jitters])
