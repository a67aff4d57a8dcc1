"""Conversion of uint8 images to model inputs, and colour jitter."""

import torch
from torch import Tensor

from mapet.data.device import to_device
from mapet.utils.errors import MapetError
from mapet.utils.rng import exact, random_bits, uniform

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
JITTER = 0xC010  # salt
BRIGHTNESS, CONTRAST, SATURATION = range(3)


def to_float(images: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """(B, 3, H, W) uint8 → float32 in [0, 1] on ``device``."""
    return to_device(images, device).float() / 255


def normalize(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1], normalised by ImageNet's mean and standard deviation per channel."""
    channels = torch.tensor([IMAGENET_MEAN, IMAGENET_STD], dtype=images.dtype).view(2, 3, 1, 1)
    mean, std = to_device(channels, images.device)
    return (images - mean) / std


def jitter(images: Tensor, strength: float, seed: int, epoch: int, index: Tensor) -> Tensor:
    """Change brightness, contrast and saturation of each image, in a random order.

    The factors are uniform in [max(0, 1 - strength), 1 + strength], as in timm's ``color_jitter``. The result for an
    image is a pure function of (seed, epoch, image index), whatever the batch.

    Args:
        images: (B, 3, H, W) float in [0, 1].
        strength: 0 returns ``images`` itself; 0.4 in the paper.
        seed: random seed.
        epoch: from 0.
        index: (B,) int64, the images' indices in the dataset.

    Raises:
        MapetError: a negative strength.
    """
    if strength < 0:
        raise MapetError(f"--color-jitter must be >= 0, got {strength}.")
    if strength == 0:
        return images
    factors, order = (to_device(part, images.device) for part in jitter_plan(strength, seed, epoch, index))
    for operation in order.unbind(1):
        factor = factors.gather(1, operation[:, None])
        images = _adjust(images, operation.view(-1, 1, 1, 1), factor.view(-1, 1, 1, 1))
    return images


def jitter_plan(strength: float, seed: int, epoch: int, index: Tensor) -> tuple[Tensor, Tensor]:
    """Factors (B, 3) float32 of brightness, contrast and saturation, and the order (B, 3) int64 of the three."""
    operations = torch.arange(3, device=index.device)
    low, high = max(0.0, 1 - strength), 1 + strength
    draws = uniform(seed, JITTER, epoch, index[:, None], operations)
    order = random_bits(seed, JITTER, epoch, index[:, None], operations + 3).argsort(dim=1)
    return (low + (high - low) * draws).float(), order


def _adjust(images: Tensor, operation: Tensor, factor: Tensor) -> Tensor:
    """One operation per image: a blend with black, its mean grey or its grey version, by torchvision's formulas."""
    red, green, blue = images.chunk(3, dim=1)
    grey = 0.2989 * red + 0.587 * green + 0.114 * blue
    # A float64 mean, rounded to float32, does not depend on how the batch and the sum are split.
    wide = torch.float64 if exact(grey.device) == grey.device else grey.dtype
    mean = grey.mean((1, 2, 3), keepdim=True, dtype=wide).to(grey.dtype)
    other = torch.where(operation == CONTRAST, mean, grey) * (operation != BRIGHTNESS)
    return torch.lerp(other, images, factor).clamp_(0, 1)
