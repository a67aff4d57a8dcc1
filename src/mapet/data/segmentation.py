"""Pairs of images and masks, of any two folders or in ADE20K's layout."""

from dataclasses import dataclass, replace
from io import BytesIO
from os.path import splitext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mapet.data.image import UnreadableImage, read_file
from mapet.data.listing import Listing
from mapet.utils.errors import MapetError, reason

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

IMAGES, MASKS, CLASSES = "images", "annotations", "classes.txt"
SPLITS = {"train": "training", "test": "validation"}
_ADE20K_CLASSES = tuple(f"class {i + 1}" for i in range(150))  # where no file names them
VOID = 255  # a label that is always ignored
IGNORED = -1  # target of pixels that neither a loss nor a score counts


@dataclass(frozen=True)
class SegmentationSet:
    """One split: label 0 is ignored, labels 1 … ``len(classes)`` are the classes in sequence; 255 is always ignored.

    Attributes:
        images: folder of the images.
        pairs: image and mask files, sorted by name.
        classes: class names; those of ``classes.txt``, one a line, or "class 1" … "class 150" as in ADE20K.
        reduce_zero_label: as above; False: labels 0 … ``len(classes)`` − 1 are the classes.
    """

    images: Path
    pairs: tuple[tuple[Path, Path], ...]
    classes: tuple[str, ...]
    reduce_zero_label: bool = True

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, i: int) -> "tuple[Image.Image, NDArray[np.int64]]":
        """The i-th RGB image and its mask (height, width).

        Raises:
            MapetError: not readable, a mask of another size or with several channels, or a label out of range.
        """
        from PIL import Image, UnidentifiedImageError

        image_file, mask_file = self.pairs[i]
        try:
            files = [BytesIO(read_file(path)) for path in self.pairs[i]]
            with Image.open(files[0]) as image, Image.open(files[1]) as mask:
                pixels, labels = image.convert("RGB"), np.asarray(mask).astype(np.int64)
        except (UnreadableImage, OSError, ValueError, SyntaxError, UnidentifiedImageError) as error:
            raise MapetError(f"{image_file} or its mask {mask_file} cannot be read: {reason(error)}.") from None
        if labels.ndim != 2:
            raise MapetError(f"{mask_file} must have one channel of class labels, got {labels.shape[2]} channels.")
        if labels.shape != (pixels.height, pixels.width):
            size = f"{labels.shape[1]} × {labels.shape[0]}"
            raise MapetError(f"{mask_file} is {size} pixels, and its image {pixels.width} × {pixels.height}.")
        most = len(self.classes) - (not self.reduce_zero_label)
        if (highest := int(labels.max(initial=0, where=labels != VOID))) > most:
            zero = ", with 0 for ignored pixels" if self.reduce_zero_label else f" or {VOID} for ignored pixels"
            raise MapetError(
                f"{mask_file} has the label {highest}, but the set has {len(self.classes)} classes: labels must be "
                f"<= {most}{zero}; name more classes."
            )
        return pixels, labels

    def pair(self, i: int) -> "tuple[Image.Image, NDArray[np.int64]]":
        """The i-th RGB image and its targets (height, width): indices of ``classes``, or ``IGNORED``; as ``read``."""
        image, labels = self.read(i)
        return image, np.where(labels == VOID, IGNORED, labels - self.reduce_zero_label)


@dataclass(frozen=True)
class MaskedImages:
    """A ``SegmentationSet`` as an ``ImageDataset`` without labels: RGBA images whose alpha holds the targets.

    Ignored pixels are 255. A pair that cannot be used is an unreadable image.
    """

    pairs: SegmentationSet
    name: str
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pairs)

    def image_id(self, i: int) -> str:
        """The path of the image below its folder."""
        return self.pairs.pairs[i][0].relative_to(self.pairs.images).as_posix()

    def label(self, i: int) -> int:
        """-1."""
        return -1

    def read(self, i: int) -> "Image.Image":
        """The i-th image and its targets; raises ``UnreadableImage``."""
        from PIL import Image

        from mapet.data.image import UnreadableImage

        try:
            image, targets = self.pairs.pair(i)
        except MapetError as error:
            raise UnreadableImage(str(error)) from None
        image.putalpha(Image.fromarray((targets % 256).astype(np.uint8)))
        return image


def open_ade20k(root: Path, split: str, reduce_zero_label: bool, option: str) -> SegmentationSet:
    """Open a split, "train" or "test", of a folder in ADE20K's layout.

    Raises:
        MapetError: no such folders, no pairs, an image without a mask, or a class file without names.
    """
    images, masks = (root / part / SPLITS[split] for part in (IMAGES, MASKS))
    for one in (images, masks):
        if not one.is_dir():
            raise MapetError(
                f"{option} {root} has no folder {one.relative_to(root)}: give a folder in ADE20K's layout, or a YAML "
                "file that names the folders of images and masks."
            )
    classes = read_lines(root / CLASSES, "class name") if (root / CLASSES).is_file() else _ADE20K_CLASSES
    return SegmentationSet(images, find_pairs(images, masks), classes, reduce_zero_label)


def find_pairs(
    images: Path,
    masks: Path,
    names: Path | None = None,
    image_suffix: str | None = None,
    mask_suffix: str = ".png",
) -> tuple[tuple[Path, Path], ...]:
    """The image and mask files with the same path below their folders, but for the suffix, sorted.

    Args:
        images, masks: folders, nested in any way.
        names: text file with the paths to use, one a line, without suffix; None: all images.
        image_suffix: how the names of images end; None: as any image.
        mask_suffix: how those of masks end, in either case.

    Raises:
        MapetError: no images, an image without a mask, or a name without an image.
    """
    found, labelled = _by_name(images, image_suffix), _by_name(masks, mask_suffix)
    if not found:
        raise MapetError(f"{images} has no images{f' that end in {image_suffix}' if image_suffix else ''}.")
    chosen = list(found) if names is None else list(dict.fromkeys(read_lines(names, "image")))
    if absent := [name for name in chosen if name not in found]:
        raise MapetError(f"{names} names {absent[0]}, but {images} has no such image ({len(absent):,} such names).")
    if missing := [name for name in chosen if name not in labelled]:
        wanted = masks / f"{missing[0]}{mask_suffix}"
        raise MapetError(f"{found[missing[0]]} has no mask {wanted} ({len(missing):,} such images).")
    return tuple((found[name], labelled[name]) for name in chosen)


def held_out(pairs: SegmentationSet, share: float, split: str) -> SegmentationSet:
    """The training pairs without a random ``share`` of them (split "train"), or these ("test"); both are sorted.

    Raises:
        MapetError: fewer than two pairs.
    """
    import torch

    from mapet.utils.rng import random_bits

    count = len(pairs)
    if count < 2:
        raise MapetError(f"{pairs.images} has one pair, but a share of them is to be tested: give at least two.")
    tested = min(max(1, round(share * count)), count - 1)
    order = random_bits(0, torch.arange(count)).argsort(stable=True)
    chosen = sorted((order[:tested] if split == "test" else order[tested:]).tolist())
    return replace(pairs, pairs=tuple(pairs.pairs[i] for i in chosen))


def read_lines(path: Path, what: str) -> tuple[str, ...]:
    """The lines of a text file that are not empty.

    Raises:
        MapetError: there are none, or the file cannot be read.
    """
    try:
        lines = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise MapetError(f"{path} cannot be read ({reason(error)}): write one {what} a line.") from error
    if not lines:
        raise MapetError(f"{path} has no lines: write one {what} a line.")
    return lines


def _by_name(folder: Path, suffix: str | None) -> dict[str, Path]:
    """The images below the folder whose names end so, or all of them, by their path without suffix.

    Raises:
        MapetError: two images differ in their suffix only.
    """
    found = dict[str, Path]()
    for path in sorted(Listing(str(folder), "").images):
        if suffix is None or path.lower().endswith(suffix.lower()):
            name = path[: -len(suffix)] if suffix else splitext(path)[0]
            if name in found:
                raise MapetError(f"{folder} has the images {found[name].name} and {path}: pairs need distinct names.")
            found[name] = folder / path
    return found
