"""Fine-tuning augmentation by timm, as a pure function of (seed, epoch, image index) or (seed, step).

timm draws from the global generators of ``random``, ``numpy`` and torch. Each call here seeds them and restores them
afterwards, so results depend neither on workers and processes nor on earlier draws.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mapet.data.augment import IMAGENET_MEAN
from mapet.data.crop import Transform
from mapet.utils.errors import MapetError
from mapet.utils.rng import random_bits, uniform
from mapet.utils.view import CenterCropResize

if TYPE_CHECKING:
    from PIL import Image

POLICY, ERASE, NOISE, MIX = 0x901C, 0xE4A5, 0xE4A6, 0x313B  # salts
RAND = r"rand(-(m|n|p|mstd|mmax|inc)\d[\d.]*|-t\w+)*"


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global CPU generators of ``random``, ``numpy`` and torch; restore their states afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


@dataclass(frozen=True)
class Policy:
    """Crop, flip and RandAugment of a training stream, instead of ``Crops``; fields have timm's names.

    Attributes:
        seed: random seed.
        scale: bounds of the crop's share of the area.
        ratio: bounds of width / height.
        hflip: probability of a horizontal flip.
        auto_augment: timm's string, such as ``"rand-m9-mstd0.5-inc1"``; None for colour jitter instead.
        color_jitter: strength of brightness, contrast and saturation.
    """

    seed: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    auto_augment: str | None = None
    color_jitter: float = 0.0

    @property
    def whole(self) -> bool:
        """Whether the crop is always the centred square."""
        return tuple(self.scale) == tuple(self.ratio) == (1, 1)

    def __call__(self, epoch: int, indices: Sequence[int]) -> list[Transform]:
        """The transforms of the images at ``indices``: pure functions of (seed, epoch, index)."""
        seeds = random_bits(self.seed, POLICY, epoch, torch.tensor(indices, dtype=torch.int64)).tolist()
        return [partial(self._transform, seed) for seed in seeds]

    def _transform(self, seed: int, image: "Image.Image", view: CenterCropResize) -> "Image.Image":
        with seeded(seed):
            return transform(self, view)(image)


@lru_cache(maxsize=8)
def transform(policy: Policy, view: CenterCropResize) -> Callable[["Image.Image"], "Image.Image"]:
    """timm's training transform up to the conversion to tensors: PIL image → PIL image of the view's size.

    Raises:
        MapetError: timm cannot parse the policy's ``auto_augment``.
    """
    from timm.data import create_transform
    from torchvision.transforms import Compose

    name = policy.auto_augment or ""
    invalid = f'timm cannot parse --auto-augment "{name}": use the form rand-m9-mstd0.5-inc1.'
    if name.startswith("rand") and not re.fullmatch(RAND, name):  # timm ignores unknown parts
        raise MapetError(invalid)
    try:
        images, colours, _ = create_transform(
            (3, *view.size),
            is_training=True,
            scale=policy.scale,
            ratio=policy.ratio,
            hflip=policy.hflip,
            auto_augment=policy.auto_augment,
            color_jitter=policy.color_jitter or None,
            interpolation=view.interpolation,
            mean=IMAGENET_MEAN,
            separate=True,
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise MapetError(invalid) from error
    for augment in colours.transforms:
        for operation in chain(getattr(augment, "ops", ()), *getattr(augment, "policy", ())):
            if operation.name.startswith("Posterize"):
                operation.aug_fn = posterize
    return Compose([images, colours])


def posterize(image: "Image.Image", bits_to_keep: int, **settings: object) -> "Image.Image":
    """timm's operation; its full magnitude keeps 0 bits, that is black, which Pillow 13 refuses."""
    from PIL import ImageOps

    return ImageOps.posterize(image, bits_to_keep) if bits_to_keep else image.point(lambda value: 0)


@dataclass(frozen=True)
class Centre:
    """The centred square of each image, with ``crop_pct`` of its shorter side; nothing random."""

    crop_pct: float = 1.0

    @property
    def whole(self) -> bool:
        """Whether it is the view's whole centred crop."""
        return self.crop_pct == 1

    @property
    def text(self) -> str:
        """For the description of a protocol."""
        return f"centre crop {self.crop_pct:g}"

    def __call__(self, epoch: int, indices: Sequence[int]) -> list[Transform]:
        """The same transform for each of ``indices``."""
        return [self._transform] * len(indices)

    def _transform(self, image: "Image.Image", view: CenterCropResize) -> "Image.Image":
        """Crop and resize in one resampling; timm resizes, then crops: the same square up to a pixel of rounding."""
        from PIL import Image, ImageOps

        (height, width), method = view.size, Image.Resampling[view.interpolation.upper()]
        return ImageOps.fit(image, (width, height), method, bleed=(1 - self.crop_pct) / 2, centering=(0.5, 0.5))


@dataclass(frozen=True)
class Published:
    """timm's evaluation transform: the shorter side is resized to size / ``crop_pct``, then the centre is cropped."""

    crop_pct: float

    @property
    def whole(self) -> bool:
        """Whether it is the view's whole centred crop."""
        return False

    @property
    def text(self) -> str:
        """For the description of a protocol."""
        return f"timm's centre crop {self.crop_pct:g}"

    def __call__(self, epoch: int, indices: Sequence[int]) -> list[Transform]:
        """The same transform for each of ``indices``."""
        return [self._transform] * len(indices)

    def _transform(self, image: "Image.Image", view: CenterCropResize) -> "Image.Image":
        return evaluation_transform(self.crop_pct, view)(image)


@lru_cache(maxsize=8)
def evaluation_transform(crop_pct: float, view: CenterCropResize) -> Callable[["Image.Image"], "Image.Image"]:
    """timm's up to the conversion to tensors: PIL image → PIL image of the view's size."""
    from timm.data import create_transform
    from torchvision.transforms import Compose

    made = create_transform((3, *view.size), crop_pct=crop_pct, interpolation=view.interpolation)
    return Compose(made.transforms[:2])  # resize and crop


@dataclass(frozen=True)
class Erasing:
    """timm's random erasing (Zhong et al., arXiv 1708.04896) for normalised images; fields as in ``Augmentation``."""

    seed: int
    reprob: float
    remode: str = "pixel"
    recount: int = 1

    def __call__(self, images: Tensor, epoch: int, index: Tensor) -> Tensor:
        """Erase in (B, 3, H, W) float, in place, by (seed, epoch, ``index`` (B,)); the noise is drawn on the CPU."""
        from timm.data.random_erasing import RandomErasing

        erase = RandomErasing(1.0, mode=self.remode, max_count=self.recount, device="cpu")
        chosen = (uniform(self.seed, ERASE, epoch, index) < self.reprob).nonzero().flatten()
        seeds = random_bits(self.seed, NOISE, epoch, index[chosen]).tolist()
        for row, seed in zip(chosen.tolist(), seeds, strict=True):
            with seeded(seed):
                erase(images[row])
        return images


@dataclass(frozen=True)
class Mixing:
    """timm's mixup (arXiv 1710.09412), cutmix (arXiv 1905.04899) and label smoothing; fields as in ``Augmentation``.

    Each batch is mixed with itself in reverse, with one factor that is a pure function of (seed, step). Each process
    mixes its part of the batch, so the number of processes decides which images are paired.
    """

    seed: int
    classes: int
    mixup: float = 0.0
    cutmix: float = 0.0
    prob: float = 1.0
    switch_prob: float = 0.5
    smoothing: float = 0.0

    def __call__(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Mix images (B, 3, H, W) in place; returns them and targets (B, classes) that sum to 1.

        If unreadable images make B odd, the last image is dropped; a single one is kept, unmixed.
        """
        from timm.data.mixup import Mixup, mixup_target

        if len(images) < 2 or not (self.prob and (self.mixup or self.cutmix)):
            return images, mixup_target(labels, self.classes, smoothing=self.smoothing)
        mix = Mixup(
            self.mixup,
            self.cutmix,
            prob=self.prob,
            switch_prob=self.switch_prob,
            label_smoothing=self.smoothing,
            num_classes=self.classes,
        )
        even = len(images) // 2 * 2
        with seeded(int(random_bits(self.seed, MIX, step))):
            mixed: tuple[Tensor, Tensor] = mix(images[:even], labels[:even])
        return mixed
