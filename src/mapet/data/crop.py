"""Random resized crops and flips by torchvision's distributions, as a pure function of (seed, epoch, place)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from mapet.utils.rng import uniform
from mapet.utils.view import Box, CenterCropResize

if TYPE_CHECKING:
    from PIL import Image

CROP, FLIP = 0xC409, 0xF119  # set the keys of crops and flips apart from all other draws with the same seed
TRIES = 10

Transform = Callable[
    ["Image.Image", CenterCropResize], "Image.Image"
]  # an image → what is seen of it, at the view's size


class TransformPolicy(Protocol):
    """How images are looked at."""

    @property
    def whole(self) -> bool:
        """Whether every look shows all of the view's own centred crop, mirrored or not."""

    def __call__(self, epoch: int, indices: Sequence[int]) -> Sequence[Transform]:
        """One look at each of the images at ``indices``."""


@dataclass(frozen=True)
class Crop:
    """What one look at an image shows, the same for views of every size.

    Attributes:
        tries: (share of the area, width / height, left, upper) of each try, the last two in [0, 1); none at all for
            the view's own centred crop.
        ratio: bounds of width / height, for when no try fits.
        flip: whether left and right are exchanged.
    """

    tries: Sequence[tuple[float, float, float, float]] = ()
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = False

    def box(self, width: int, height: int) -> Box | None:
        """In an image of that size the first try that fits, else the largest centred box within ``ratio``.

        None where there are no tries: the view then cuts the image itself.
        """
        for area, aspect, x, y in self.tries:
            w = round(math.sqrt(width * height * area * aspect))
            h = round(math.sqrt(width * height * area / aspect))
            if 0 < w <= width and 0 < h <= height:
                left, upper = int(x * (width - w + 1)), int(y * (height - h + 1))
                return left, upper, left + w, upper + h
        return self._largest(width, height) if self.tries else None

    def _largest(self, width: int, height: int) -> Box:
        w = min(width, max(1, round(height * self.ratio[1])))
        h = min(height, max(1, round(width / self.ratio[0])))
        left, upper = (width - w) // 2, (height - h) // 2
        return left, upper, left + w, upper + h

    def __call__(self, image: "Image.Image", view: CenterCropResize) -> "Image.Image":
        """This part of the image at the view's size."""
        from PIL import ImageOps

        seen = view(image, self.box(*image.size))
        return ImageOps.mirror(seen) if self.flip else seen


@dataclass(frozen=True)
class Crops:
    """The crops of a training stream: as torchvision's ``RandomResizedCrop``, then ``RandomHorizontalFlip``.

    Attributes:
        seed: of all chance.
        scale: bounds of the crop's share of the area, uniform; None for the view's own centred crop.
        ratio: bounds of width / height, whose logarithm is uniform.
        hflip: share of the images that are mirrored.
    """

    seed: int
    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.0

    @property
    def whole(self) -> bool:
        """Whether nothing is cut off: mirrored at most."""
        return self.scale is None

    def __call__(self, epoch: int, indices: Sequence[int]) -> list[Crop]:
        """The crops of the images at ``indices``: each hangs on (seed, epoch, its place) alone."""
        index = torch.tensor(indices, dtype=torch.int64)
        flips = (uniform(self.seed, FLIP, epoch, index) < self.hflip).tolist()
        if self.scale is None:
            return [Crop(flip=flip) for flip in flips]
        keys = index[:, None, None], torch.arange(TRIES)[:, None], torch.arange(4)
        numbers = uniform(self.seed, CROP, epoch, *keys).tolist()
        return [Crop(self._tries(rows), self.ratio, flip) for rows, flip in zip(numbers, flips, strict=True)]

    def _tries(self, rows: list[list[float]]) -> list[tuple[float, float, float, float]]:
        """Uniform numbers (TRIES, 4) in [0, 1) → tries, one at a time: vectorised exponentials differ in rounding."""
        (low, high), (tall, wide) = self.scale or (1, 1), map(math.log, self.ratio)
        return [(low + (high - low) * a, math.exp(tall + (wide - tall) * r), x, y) for a, r, x, y in rows]
