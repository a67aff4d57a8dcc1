"""Images that are given one by one, by their paths or in memory, as an unlabelled dataset."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from mapet.data.dataset import ImageDataset, open_dataset
from mapet.data.folder import open_all, printable
from mapet.data.image import MAX_PIXELS, as_rgb, image_suffixes, read_image
from mapet.data.packed import packed_splits
from mapet.data.packed_strings import PackedStrings
from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    from PIL import Image

CHANNELS = (1, 3, 4)
KINDS = (
    "a path, a PIL image, a uint8 array (height, width, channels), or a tensor (channels, height, width) of uint8 or "
    "of float in 0 … 1, with 1, 3 or 4 channels"
)


class GivenImages:
    """A dataset of paths, PIL images, arrays and tensors; repeated paths count once.

    Its image ids are the paths as they are given, and the indices of other images.

    Args:
        images: each is of one of ``KINDS``.
        root: folder to which the paths are relative; None: the current one.
        max_pixels: larger image files are unreadable.

    Raises:
        MapetError: no images, or one of another kind.
    """

    classes: tuple[str, ...] = ()

    def __init__(self, images: Iterable[Any], root: Path | None = None, max_pixels: int = MAX_PIXELS) -> None:
        self.max_pixels = max_pixels
        self.root = Path(os.path.abspath(root or "."))
        given = list(images)
        self._images: Sequence[Any] = given
        if all(isinstance(image, str | Path) for image in given):
            self._images = PackedStrings(dict.fromkeys(map(str, given)))
        else:
            for index, image in enumerate(given):
                _require_image(image, index)
        if not len(self._images):
            raise MapetError("There are no images: give at least one.")
        self.name = f"{len(self._images):,} given image{'s' * (len(self._images) > 1)}"

    def __len__(self) -> int:
        return len(self._images)

    def image_id(self, i: int) -> str:
        """The path, with unprintable characters escaped, or the index."""
        image = self._images[i]
        return printable(str(image)) if isinstance(image, str | Path) else str(i)

    def label(self, i: int) -> int:
        """-1: there are no labels."""
        return -1

    def read(self, i: int) -> "Image.Image":
        """The image in RGB; raises ``UnreadableImage``."""
        image = self._images[i]
        if isinstance(image, str | Path):
            return read_image(self.root / Path(image).expanduser(), self.max_pixels)
        return as_rgb(to_pil(image))


def open_images(
    images: Any, split: Literal["train", "test"] | None = None, max_pixels: int = MAX_PIXELS
) -> ImageDataset:
    """The dataset of whatever images are given.

    Args:
        images: a folder, packed or not, ``"cifar10"``, an ``ImageDataset``, or one image or several of ``KINDS``;
            several may also be an array or a tensor of four dimensions.
        max_pixels: larger image files are unreadable.
        split: of cifar10, a pack or a folder; None: all images of a folder, and else the training images.

    Raises:
        MapetError: no images, no such folder or file, or images of another kind.
    """
    if isinstance(images, str | Path):
        path = Path(images).expanduser()
        if path.is_file():
            return GivenImages([images], max_pixels=max_pixels)
        if split is None and images != "cifar10" and path.is_dir() and not packed_splits(path):
            return open_all(path, max_pixels)
        if path.suffix.lower() in image_suffixes() and not path.exists():
            raise MapetError(f"There is no file {images}: give an image, or a folder of images.")
        return open_dataset(str(images), split or "train", max_pixels)
    if hasattr(images, "image_id"):
        return images
    several = isinstance(images, Iterable) and (images.ndim == 4 if isinstance(images, np.ndarray | Tensor) else True)
    return GivenImages(images if several and not hasattr(images, "getexif") else [images], max_pixels=max_pixels)


def to_pil(image: Any) -> "Image.Image":
    """A PIL image of an image in memory; float tensors are rounded to 8 bits."""
    from PIL import Image

    if isinstance(image, Tensor):
        values = image.detach().cpu()
        values = values if values.dtype == torch.uint8 else (values.float() * 255).round().to(torch.uint8)
        image = values.permute(1, 2, 0).numpy()
    if isinstance(image, np.ndarray):
        return Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
    opened: Image.Image = image
    return opened


def _require_image(image: Any, index: int) -> None:
    """Refuse what is not an image.

    Raises:
        MapetError: what it is, and what it may be.
    """
    from PIL import Image

    if isinstance(image, str | Path | Image.Image):
        return
    name = type(image).__name__
    if isinstance(image, np.ndarray | Tensor):
        shape, kind = tuple(image.shape), str(image.dtype).removeprefix("torch.")
        name = f"{'an array' if isinstance(image, np.ndarray) else 'a tensor'} {shape} of {kind}"
        channels = shape[-1:] if isinstance(image, np.ndarray) else shape[:1]
        grey = isinstance(image, np.ndarray) and image.ndim == 2
        if 0 not in shape and (grey or (len(shape) == 3 and channels[0] in CHANNELS)) and _has_range(image):
            return
        if isinstance(image, Tensor) and image.is_floating_point() and image.numel():
            name += f" with values {float(image.min()):g} … {float(image.max()):g}"
    raise MapetError(f"Image {index} is {name}: give {KINDS}.")


def _has_range(image: "np.ndarray[Any, Any] | Tensor") -> bool:
    """Whether the values are uint8, or for a tensor float in 0 … 1."""
    if isinstance(image, Tensor) and image.is_floating_point():
        return bool(((image >= 0) & (image <= 1)).all())
    return image.dtype in (np.uint8, torch.uint8)
