"""The corruptions of ImageNet-C, made on the fly, as a pure function of (seed, corruption, strength, image index)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mapet.data.crop import Transform
from mapet.data.policy import Centre, Published, seeded
from mapet.utils.errors import MapetError
from mapet.utils.rng import random_bits
from mapet.utils.view import CenterCropResize

if TYPE_CHECKING:
    from PIL import Image

CORRUPT = 0xC0A2  # salt
IMPULSE = (0.03, 0.06, 0.09, 0.17, 0.27)  # share of pixels by strength, as in ImageNet-C


def require_corruptions() -> None:
    """Require the package that makes the corruptions.

    Raises:
        MapetError: it is not installed.
    """
    if find_spec("corrupt_tta") is None:
        raise MapetError("--corruptions needs the package corrupt-tta: pip install 'mapet[robustness]'.")


@dataclass(frozen=True)
class Corrupted:
    """A crop of each image, then one corruption of its pixels by ``corrupt_tta``.

    Attributes:
        seed: random seed.
        name: the corruption, one of ``config.validate.CORRUPTIONS``.
        severity: strength, 1 to 5.
        crops: the crop before it.
    """

    seed: int
    name: str
    severity: int
    crops: Centre | Published

    @property
    def whole(self) -> bool:
        """Whether the crop is the view's whole centred one."""
        return self.crops.whole

    @property
    def text(self) -> str:
        """For the description of a protocol."""
        return f"{self.crops.text}, {self.name} {self.severity}, seed {self.seed}"

    def __call__(self, epoch: int, indices: Sequence[int]) -> list[Transform]:
        """The transforms of the images at ``indices``."""
        salt = int.from_bytes(self.name.encode()[:7], "big")
        seeds = random_bits(self.seed, CORRUPT, salt, self.severity, torch.tensor(indices, dtype=torch.int64)).tolist()
        crops = self.crops(epoch, indices)
        return [partial(self._transform, seed, crop) for seed, crop in zip(seeds, crops, strict=True)]

    def _transform(self, seed: int, crop: Transform, image: "Image.Image", view: CenterCropResize) -> "Image.Image":
        from PIL import Image

        with seeded(seed):
            return Image.fromarray(corrupt(np.array(crop(image, view)), self.name, self.severity, seed))


def corrupt(pixels: "np.ndarray[Any, Any]", name: str, severity: int, seed: int) -> "np.ndarray[Any, Any]":
    """(H, W, 3) uint8 → (H, W, 3) uint8; all but impulse noise draws from the global generator of numpy.

    scikit-image's impulse noise draws from a generator that is new at each call, so it gets ``seed`` here.
    """
    if name == "impulse_noise":
        from skimage.util import random_noise

        found = random_noise(pixels / 255, mode="s&p", amount=IMPULSE[severity - 1], rng=seed % 2**63) * 255
    else:
        import corrupt_tta

        found = corrupt_tta.corrupt(pixels, severity=severity, corruption_name=name)
    return np.asarray(found).astype(np.uint8)
