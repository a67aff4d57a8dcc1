"""Segmentation sets: folders in ADE20K's layout, and any two folders that a YAML file names."""

from collections import Counter
from pathlib import Path

from mapet.config.file import read
from mapet.config.segmentation_set import SetFile
from mapet.data.segmentation import (
    IGNORED,
    SPLITS,
    VOID,
    SegmentationSet,
    find_pairs,
    held_out,
    open_ade20k,
    read_lines,
)
from mapet.utils.errors import MapetError
from mapet.utils.io import require_folder

CHECKED = 16  # pairs of a split that are read before the work


def open_segmentation(
    data: str | Path, split: str = "train", reduce_zero_label: bool = True, option: str = "--data"
) -> SegmentationSet:
    """Open a split, "train" or "test", of a segmentation set.

    Args:
        data: a folder in ADE20K's layout, or a YAML file of ``SetFile``.
        split: which.
        reduce_zero_label: label 0 is ignored and the classes begin at 1, unless the file says that they begin at 0.
        option: that names ``data`` in messages.

    Raises:
        MapetError: no such folders, no pairs, an image without a mask, or no class names.
    """
    path = Path(data).expanduser()
    if not path.is_file():
        return open_ade20k(require_folder(data, option), split, reduce_zero_label, option)
    file = read(path, SetFile)
    classes = file.classes if file.class_file is None else read_lines(path.parent / file.class_file, "class name")
    part = file.test if split == "test" and file.test else file.train
    images, masks = (require_folder(path.parent / folder, f"{path}:") for folder in (part.images, part.masks))
    names = None if part.names is None else path.parent / part.names
    pairs = SegmentationSet(
        images,
        find_pairs(images, masks, names, file.image_suffix, file.mask_suffix),
        classes,
        reduce_zero_label and file.reduce_zero_label,
    )
    return pairs if file.test else held_out(pairs, file.test_share, split)


def both_splits(
    data: str | Path, reduce_zero_label: bool = True, option: str = "--data"
) -> tuple[SegmentationSet, SegmentationSet]:
    """The train and test split, of each of which some pairs are read; arguments as ``open_segmentation``.

    Raises:
        MapetError: as ``open_segmentation`` and ``SegmentationSet.read``; fewer than 2 classes, more than 254,
            or one that is named twice.
    """
    train, test = (open_segmentation(data, split, reduce_zero_label, option) for split in SPLITS)
    if not 2 <= len(train.classes) < VOID:
        raise MapetError(f"{option} {data} must have 2 to {VOID - 1} classes, got {len(train.classes)}.")
    if twice := [name for name, times in Counter(train.classes).items() if times > 1]:
        raise MapetError(f'{option} {data} has the class "{twice[0]}" twice: give each class its own name.')
    for part in (train, test):
        ignored = [(part.pair(i)[1] == IGNORED).all() for i in range(0, len(part), -(-len(part) // CHECKED))]
        if all(ignored):
            raise MapetError(
                f"{part.pairs[0][1]} and others have only labels that are ignored, 0 or {VOID}: give masks of the "
                "labels 1, 2, …, or --no-reduce-zero-label if the classes begin at 0."
            )
    return train, test


def inputs_of(data: str | None) -> list[str]:
    """The path of a segmentation set, and the folders of images and masks that a YAML file names."""
    if not data or not (path := Path(data).expanduser()).is_file():
        return [data] if data else []
    file = read(path, SetFile)
    parts = [file.train, file.test or file.train]
    return [data, *(str(path.parent / folder) for part in parts for folder in (part.images, part.masks))]
