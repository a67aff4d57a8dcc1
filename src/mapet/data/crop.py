"""Random resized crops and flips with torchvision's distributions, as a pure function of (seed, epoch, image index)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from mapet.utils.rng import uniform
from mapet.utils.view import Box, CenterCropResize

if TYPE_CHECKING:
    from PIL import Image

CROP, FLIP = 0xC409, 0xF119  # salts
CANDIDATES = 10

# PIL image, view → PIL image of the view's size
Transform = Callable[["Image.Image", CenterCropResize], "Image.Image"]


class TransformPolicy(Protocol):
    """Draws the transforms of a training stream."""

    @property
    def whole(self) -> bool:
        """Whether every transform shows the view's whole centred crop, mirrored or not."""

    def __call__(self, epoch: int, indices: Sequence[int]) -> Sequence[Transform]:
        """One transform for each of the images at ``indices``."""


@dataclass(frozen=True)
class Crop:
    """One drawn crop and flip of an image, the same for views of every size.

    Attributes:
        candidates: (share of the area, width / height, left, upper) of each candidate box, the last two in [0, 1);
            empty for the view's centred crop.
        ratio: bounds of width / height, if no candidate fits.
        flip: whether to mirror the image horizontally.
    """

    candidates: Sequence[tuple[float, float, float, float]] = ()
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = False

    def box(self, width: int, height: int) -> Box | None:
        """The first candidate that fits an image of this size, else the largest centred box within ``ratio``.

        None if there are no candidates: the view then crops the image itself.
        """
        for area, aspect, x, y in self.candidates:
            w = round(math.sqrt(width * height * area * aspect))
            h = round(math.sqrt(width * height * area / aspect))
            if 0 < w <= width and 0 < h <= height:
                left, upper = int(x * (width - w + 1)), int(y * (height - h + 1))
                return left, upper, left + w, upper + h
        return self._largest(width, height) if self.candidates else None

    def _largest(self, width: int, height: int) -> Box:
        w = min(width, max(1, round(height * self.ratio[1])))
        h = min(height, max(1, round(width / self.ratio[0])))
        left, upper = (width - w) // 2, (height - h) // 2
        return left, upper, left + w, upper + h

    def __call__(self, image: "Image.Image", view: CenterCropResize) -> "Image.Image":
        """The crop at the view's size."""
        from PIL import ImageOps

        cropped = view(image, self.box(*image.size))
        return ImageOps.mirror(cropped) if self.flip else cropped


@dataclass(frozen=True)
class Crops:
    """Draws torchvision's ``RandomResizedCrop``, then ``RandomHorizontalFlip``.

    Attributes:
        seed: random seed.
        scale: bounds of the crop's share of the area, uniform; None for the view's centred crop.
        ratio: bounds of width / height, log-uniform.
        hflip: probability of a horizontal flip.
    """

    seed: int
    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.0

    @property
    def whole(self) -> bool:
        """Whether there is no random crop."""
        return self.scale is None

    def __call__(self, epoch: int, indices: Sequence[int]) -> list[Crop]:
        """The crops of the images at ``indices``: pure functions of (seed, epoch, index)."""
        index = torch.tensor(indices, dtype=torch.int64)
        flips = (uniform(self.seed, FLIP, epoch, index) < self.hflip).tolist()
        if self.scale is None:
            return [Crop(flip=flip) for flip in flips]
        seeds = index[:, None, None], torch.arange(CANDIDATES)[:, None], torch.arange(4)
        numbers = uniform(self.seed, CROP, epoch, *seeds).tolist()
        return [Crop(self._candidates(rows), self.ratio, flip) for rows, flip in zip(numbers, flips, strict=True)]

    def _candidates(self, rows: list[list[float]]) -> list[tuple[float, float, float, float]]:
        """Candidates from uniform numbers (CANDIDATES, 4) in [0, 1); not vectorised, as tensor exp rounds otherwise."""
        (low, high), (tall, wide) = self.scale or (1, 1), map(math.log, self.ratio)
        return [(low + (high - low) * a, math.exp(tall + (wide - tall) * r), x, y) for a, r, x, y in rows]
