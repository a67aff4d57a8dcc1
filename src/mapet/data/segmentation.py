"""Pairs of images and masks in ADE20K's layout: ``images/training/a.jpg`` and ``annotations/training/a.png``."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mapet.utils.errors import MapetError, reason
from mapet.utils.io import require_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

IMAGES, MASKS, CLASSES = "images", "annotations", "classes.txt"
SPLITS = {"train": "training", "test": "validation"}
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
ADE20K = 150  # classes, where no file names them
VOID = 255  # a label that is always ignored
CHECKED = 16  # pairs of a split that are read before the work
IGNORED = -1  # target of pixels that neither a loss nor a score counts


@dataclass(frozen=True)
class SegmentationSet:
    """One split: label 0 is ignored, labels 1 … ``len(classes)`` are the classes in sequence; 255 is always ignored.

    Attributes:
        pairs: image and mask files, sorted by name.
        classes: class names; those of ``classes.txt``, one a line, or "class 1" … "class 150" as in ADE20K.
        reduce_zero_label: as above; False: labels 0 … ``len(classes)`` − 1 are the classes.
    """

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
            with Image.open(image_file) as image, Image.open(mask_file) as mask:
                pixels, labels = image.convert("RGB"), np.asarray(mask).astype(np.int64)
        except (OSError, ValueError, SyntaxError, UnidentifiedImageError) as error:
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
                f"<= {most}{zero}; name more classes in {CLASSES}."
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
        """The name of the image file."""
        return self.pairs.pairs[i][0].name

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


def open_segmentation(
    folder: str | Path, split: str = "train", reduce_zero_label: bool = True, option: str = "--data"
) -> SegmentationSet:
    """Open a split, "train" or "test", of a folder in ADE20K's layout; other arguments as ``SegmentationSet``.

    Raises:
        MapetError: no such folders, no pairs, an image without a mask, or a class file without names.
    """
    root = require_folder(folder, option)
    images, masks = (root / part / SPLITS[split] for part in (IMAGES, MASKS))
    for one in (images, masks):
        if not one.is_dir():
            raise MapetError(f"{option} {folder} has no folder {one.relative_to(root)}: it must hold images and masks.")
    named = {path.stem: path for path in sorted(masks.iterdir()) if path.suffix.lower() == ".png"}
    files = [path for path in sorted(images.iterdir()) if path.suffix.lower() in SUFFIXES]
    if not files:
        raise MapetError(f"{option} {folder} has no pairs: there are no images in {images.relative_to(root)}.")
    if missing := [path for path in files if path.stem not in named]:
        raise MapetError(f"{missing[0]} has no mask {masks / missing[0].stem}.png ({len(missing):,} such images).")
    pairs = tuple((path, named[path.stem]) for path in files)
    return SegmentationSet(pairs, _classes(root / CLASSES), reduce_zero_label)


def both_splits(
    folder: str | Path, reduce_zero_label: bool = True, option: str = "--data"
) -> tuple[SegmentationSet, SegmentationSet]:
    """The train and test split, of each of which some pairs are read.

    Raises:
        MapetError: as ``open_segmentation`` and ``SegmentationSet.read``; fewer than 2 classes, or more than 254.
    """
    train, test = (open_segmentation(folder, split, reduce_zero_label, option) for split in SPLITS)
    if not 2 <= len(train.classes) < VOID:
        raise MapetError(f"{option} {folder} must have 2 to {VOID - 1} classes, got {len(train.classes)}.")
    for part in (train, test):
        for i in range(0, len(part), -(-len(part) // CHECKED)):
            part.read(i)
    return train, test


def _classes(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return tuple(f"class {i + 1}" for i in range(ADE20K))
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise MapetError(f"{path} cannot be read ({reason(error)}): write one class name a line.") from error
    if not names:
        raise MapetError(f"{path} has no class names: write one a line, or delete it for ADE20K's 150 classes.")
    return names
