"""Decodes an image file of any kind and mode to RGB, or gives a short reason why it cannot."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
KINDS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = (1 << 30) // 4 // 3  # a quarter of a GiB of RGB; larger images count as decompression bombs


class UnreadableImage(Exception):
    """An image that cannot be used; the message is a short reason."""


def read_image(path: Path) -> "Image.Image":
    """The first frame of an image file: mode RGB, turned upright by its EXIF orientation, composited over white.

    Raises:
        UnreadableImage: unreadable, zero bytes, not an image, truncated or damaged, or a decompression bomb.
    """
    with _as_unreadable():
        _check_file(path.stat())
        with path.open("rb") as file:
            return _decoded(file, str(path))


def decode_image(content: bytes) -> "Image.Image":
    """As ``read_image``, from the bytes of an image file."""
    with _as_unreadable():
        return _decoded(BytesIO(content), "")


@contextmanager
def _as_unreadable() -> Iterator[None]:
    """Turn any exception into ``UnreadableImage``."""
    try:
        yield
    except UnreadableImage:
        raise
    except OSError as error:
        # A failed system call has an errno; PIL raises the same class without one for damaged content.
        raise UnreadableImage(f"unreadable: {error.strerror}" if error.errno else f"damaged: {error}") from error
    except Exception as error:  # a decoder may raise anything on damaged content
        raise UnreadableImage(f"damaged: {str(error) or type(error).__name__}") from error


def to_rgb(image: "Image.Image") -> "Image.Image":
    """Convert any PIL mode to RGB; grey values keep their full range, transparency becomes white.

    16-bit values are divided by 257 and floats in [0, 1] multiplied by 255; values outside these ranges are scaled from
    the image's minimum and maximum to 0 … 255.
    """
    from PIL import Image

    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _check_file(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would block
        raise UnreadableImage("not an image: not a regular file")
    if status.st_size == 0:
        raise UnreadableImage("zero bytes")


def _decoded(file: BinaryIO, name: str) -> "Image.Image":
    from PIL import ImageOps

    image = _opened(file, name)
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableImage(f"decompression bomb: {image.width} x {image.height} pixels")
    image.load()
    return to_rgb(ImageOps.exif_transpose(image))


def _opened(file: BinaryIO, name: str) -> "Image.Image":
    """``Image.open`` for ``KINDS`` only, without its warning about size, which only global state could silence."""
    from PIL import Image

    Image.init()
    prefix = file.read(16)
    file.seek(0)
    for kind in KINDS:
        factory, accepts = Image.OPEN[kind]
        if accepts is not None and accepts(prefix) is True:
            return factory(file, name)
    raise UnreadableImage("not an image of a known kind")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Scale grey values (H, W) of any number type to uint8, without clipping."""
    grey = values.astype(np.float64)
    low, high = grey.min(), grey.max()
    if not np.isfinite(high - low):
        raise UnreadableImage("holds values that are not finite numbers")
    full = 1.0 if values.dtype.kind == "f" else 65535.0
    if low < 0 or high > full:
        grey, full = grey - low, high - low
    return np.rint(grey * (255.0 / full)).astype(np.uint8)
