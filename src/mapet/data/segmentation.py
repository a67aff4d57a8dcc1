"""Pairs of images and masks in ADE20K's layout: ``images/training/a.jpg`` and ``annotations/training/a.png``."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

IMAGES, MASKS, CLASSES = "images", "annotations", "classes.txt"
SPLITS = {"train": "training", "test": "validation"}
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
ADE20K = 150  # classes, where no file names them
IGNORED = 0  # the label that no score counts


@dataclass(frozen=True)
class SegmentationSet:
    """One split: label 0 is ignored, labels 1 … ``len(classes)`` are the classes in sequence.

    Attributes:
        pairs: image and mask files, sorted by name.
        classes: class names; those of ``classes.txt``, one a line, or "class 1" … "class 150" as in ADE20K.
    """

    pairs: tuple[tuple[Path, Path], ...]
    classes: tuple[str, ...]

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
            raise MapetError(f"{image_file} or its mask {mask_file} cannot be read: {error}.") from None
        if labels.ndim != 2:
            raise MapetError(f"{mask_file} must have one channel of class labels, got {labels.shape[2]} channels.")
        if labels.shape != (pixels.height, pixels.width):
            size = f"{labels.shape[1]} × {labels.shape[0]}"
            raise MapetError(f"{mask_file} is {size} pixels, and its image {pixels.width} × {pixels.height}.")
        if (highest := int(labels.max(initial=0))) > len(self.classes):
            raise MapetError(
                f"{mask_file} has the label {highest}, but the set has {len(self.classes)} classes: labels must be "
                f"<= {len(self.classes)}, with 0 for ignored pixels; name more classes in {CLASSES}."
            )
        return pixels, labels


def open_segmentation(folder: str | Path, split: str = "train") -> SegmentationSet:
    """Open a split, "train" or "test", of a folder in ADE20K's layout.

    Raises:
        MapetError: no such folders, no pairs, an image without a mask, or a class file without names.
    """
    root = Path(folder).expanduser()
    images, masks = (root / part / SPLITS[split] for part in (IMAGES, MASKS))
    for one in (images, masks):
        if not one.is_dir():
            raise MapetError(f"--data {folder} has no folder {one.relative_to(root)}: it must hold images and masks.")
    named = {path.stem: path for path in sorted(masks.iterdir()) if path.suffix.lower() == ".png"}
    files = [path for path in sorted(images.iterdir()) if path.suffix.lower() in SUFFIXES]
    if not files:
        raise MapetError(f"--data {folder} has no pairs: there are no images in {images.relative_to(root)}.")
    if missing := [path for path in files if path.stem not in named]:
        raise MapetError(f"{missing[0]} has no mask {masks / missing[0].stem}.png ({len(missing):,} such images).")
    return SegmentationSet(tuple((path, named[path.stem]) for path in files), _classes(root / CLASSES))


def _classes(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return tuple(f"class {i + 1}" for i in range(ADE20K))
    names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    if not names:
        raise MapetError(f"{path} has no class names: write one a line, or delete it for ADE20K's 150 classes.")
    return names
