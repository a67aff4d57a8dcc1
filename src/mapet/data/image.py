"""Decodes an image file of any kind and mode to RGB, or gives a short reason why it cannot.

Each mode of Pillow has one rule, which looks at no other image and never stretches values:

| mode | values | 8-bit value |
|---|---|---|
| 1, L, P, RGB, CMYK, YCbCr, LAB, HSV | 8 bits | as Pillow converts it to RGB |
| with alpha, or a transparent colour | 8 bits | composited over white |
| I;16, I;16B, and I of PNG and PPM files | 0 … 65535 | value / 257; a transparent grey is white |
| I (int32) | 0 … 255, otherwise 0 … 65535 | value, otherwise value / 257 |
| F (float) | 0 … 1, otherwise 0 … 255, otherwise 0 … 65535 | value x 255, otherwise value, otherwise value / 257 |

Decoding takes about 8 bytes for each pixel. Images of more than ``MAX_PIXELS``, or the number given, are unreadable.

The first range that holds all values of the image applies. Values outside the last one, and values that are not
numbers, make an image unreadable.
"""

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from mapet.utils.errors import reason

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")  # the usual ones
KINDS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # tried first
# Kinds that Pillow only identifies, or decodes with other programs.
REFUSED = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
STRIP = 1 << 20  # pixels of a deep or transparent image that are converted at a time
MAX_PIXELS = (1 << 30) // 4 // 3  # a quarter of a GiB of RGB; larger images count as decompression bombs


class UnreadableImage(Exception):
    """An image that cannot be used; the message is a short reason."""


def read_image(path: Path, max_pixels: int = MAX_PIXELS, draft: int | None = None) -> "Image.Image":
    """The first frame of an image file: mode RGB, turned upright by its EXIF orientation, composited over white.

    Args:
        path: the file.
        max_pixels: larger images are unreadable.
        draft: decode a JPEG file at the smallest of 1, 1/2, 1/4 and 1/8 of its size whose shorter side has so many
            pixels; None: at its size.

    Raises:
        UnreadableImage: unreadable, zero bytes, not an image, truncated or damaged, or of more than ``max_pixels``.
    """
    with _as_unreadable():
        _check_file(path.stat())
        with path.open("rb") as file:
            return _decoded(file, str(path), max_pixels, draft)


def read_file(path: Path) -> bytes:
    """The bytes of an image file; raises as ``read_image`` where it is none."""
    with _as_unreadable():
        _check_file(path.stat())
        return path.read_bytes()


def decode_image(content: bytes) -> "Image.Image":
    """As ``read_image``, from the bytes of an image file."""
    with _as_unreadable():
        return _decoded(BytesIO(content), "", MAX_PIXELS)


def as_rgb(image: "Image.Image") -> "Image.Image":
    """As ``read_image``, from an open PIL image, which stays as it is."""
    from PIL import ImageOps

    with _as_unreadable():
        upright = ImageOps.exif_transpose(image)
        upright.format = image.format  # decides about the range of deep images
        return to_rgb(upright)


@contextmanager
def _as_unreadable() -> Iterator[None]:
    """Turn any exception into ``UnreadableImage``."""
    try:
        yield
    except UnreadableImage:
        raise
    except OSError as error:
        # A failed system call has an errno; PIL raises the same class without one for damaged content.
        raise UnreadableImage(
            f"unreadable: {error.strerror}" if error.errno else f"damaged: {reason(error)}"
        ) from error
    except Exception as error:  # a decoder may raise anything on damaged content
        raise UnreadableImage(f"damaged: {reason(error)}") from error


@cache
def image_suffixes() -> frozenset[str]:
    """The suffixes, in lower case with the dot, of all files that the installed Pillow decodes by itself."""
    from PIL import Image

    known = Image.registered_extensions().items()
    return frozenset(SUFFIXES) | {suffix for suffix, kind in known if kind in Image.OPEN and kind not in REFUSED}


def is_image(path: str) -> bool:
    """Whether a file starts like an image, whatever its name; no pixels are decoded."""
    try:
        with open(path, "rb") as file:
            _opened(file, "")
    except Exception:  # a decoder may raise anything
        return False
    return True


def to_rgb(image: "Image.Image") -> "Image.Image":
    """Convert any PIL mode to RGB, by the rules of the module; an image that is RGB already is returned as it is."""
    from PIL import Image

    if is_deep(image):
        return _eight_bits(image).convert("RGB")
    if image.has_transparency_data:
        shown = Image.new("RGB", image.size)
        for top, rows in _bands(image):
            part = image.crop((0, top, image.width, top + rows)).convert("RGBA")
            shown.paste(Image.alpha_composite(Image.new("RGBA", part.size, "white"), part).convert("RGB"), (0, top))
        return shown
    return image if image.mode == "RGB" else image.convert("RGB")


def is_deep(image: "Image.Image") -> bool:
    """Whether the image holds grey values of more than 8 bits."""
    return image.mode == "F" or image.mode.startswith("I")


def value_range(image: "Image.Image") -> tuple[float, float, float]:
    """The lowest and highest value of a deep image, and the upper end of the range that its rule assumes.

    Raises:
        UnreadableImage: values that are not numbers, or outside the widest range.
    """
    lows, highs = zip(*((float(part.min()), float(part.max())) for _, part in _strips(image)), strict=True)
    low, high = float(np.min(lows)), float(np.max(highs))
    if not np.isfinite(high - low):
        raise UnreadableImage("holds values that are not finite numbers: give values in 0 … 65535")
    if low < 0 or high > 65535:
        raise UnreadableImage(f"holds values {low:g} … {high:g}, outside 0 … 65535: convert it to 8 or 16 bits")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return low, high, 65535
    ends = (1, 255, 65535) if image.mode == "F" else (255, 65535)
    return low, high, next(end for end in ends if high <= end)


def deep_range(path: Path, max_pixels: int = MAX_PIXELS) -> tuple[float, float] | None:
    """The highest value of a deep image file and the end of its range; None for other files, which are not decoded."""
    with suppress(UnreadableImage), _as_unreadable():
        _check_file(path.stat())
        with path.open("rb") as file:
            image = _opened(file, str(path))
            if is_deep(image) and image.width * image.height <= max_pixels:
                return value_range(image)[1:]
    return None


def _check_file(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would block
        raise UnreadableImage("not an image: not a regular file")
    if status.st_size == 0:
        raise UnreadableImage("zero bytes")


def _decoded(file: BinaryIO, name: str, max_pixels: int, draft: int | None = None) -> "Image.Image":
    from PIL import ImageOps

    image = _opened(file, name)
    if image.width * image.height > max_pixels:
        size = f"{image.width} x {image.height} pixels"
        raise UnreadableImage(f"decompression bomb: {size}, more than {max_pixels:,} (--max-pixels)")
    if draft:
        shorter = min(image.size)
        image.draft(image.mode, (image.width * draft // shorter, image.height * draft // shorter))
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return to_rgb(image)


def _opened(file: BinaryIO, name: str) -> "Image.Image":
    """``Image.open`` by content, without its warning about size, which only global state could silence.

    Kinds whose content has no mark, such as TGA, are opened by the suffix of ``name``.
    """
    from PIL import Image

    Image.init()
    prefix = file.read(16)
    named = Image.registered_extensions().get(os.path.splitext(name)[1].lower())
    for kind in dict.fromkeys((*KINDS, *Image.ID)):
        factory, accepts = Image.OPEN[kind]
        fits = kind == named if accepts is None else accepts(prefix)
        if kind in REFUSED or not fits or isinstance(fits, str):  # a string says why Pillow lacks the decoder
            continue
        file.seek(0)
        try:
            return factory(file, name)
        except (SyntaxError, IndexError, TypeError, struct.error):  # as Pillow: another kind with a similar start
            if kind in KINDS:
                raise
    raise UnreadableImage("not an image of a known kind")


def _bands(image: "Image.Image") -> Iterator[tuple[int, int]]:
    """Parts of an image's height: the first row, and the number of rows, of about ``STRIP`` pixels each."""
    rows = max(1, STRIP // max(1, image.width))
    return ((top, min(rows, image.height - top)) for top in range(0, image.height, rows))


def _strips(image: "Image.Image") -> Iterator[tuple[int, np.ndarray]]:
    """The rows of an image a few at a time, each with the index of its first one."""
    for top, rows in _bands(image):
        yield top, np.asarray(image.crop((0, top, image.width, top + rows)))


def _eight_bits(image: "Image.Image") -> "Image.Image":
    """A deep image in mode L; strips bound the memory that the conversion takes."""
    from PIL import Image

    scale = 255.0 / value_range(image)[2]
    clear = image.info.get("transparency")
    grey = np.empty((image.height, image.width), np.uint8)
    for top, part in _strips(image):
        shown = grey[top : top + len(part)]
        shown[:] = np.rint(part.astype(np.float64) * scale)
        if isinstance(clear, int):
            shown[part == clear] = 255
    return Image.fromarray(grey)
