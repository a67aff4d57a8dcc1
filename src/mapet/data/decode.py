"""Decodes images of a dataset to uint8 tensors, in this process or in workers, in a given order."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mapet.data.crop import Crop, Transform, TransformPolicy
from mapet.data.dataset import ImageDataset, base_dataset
from mapet.data.image import UnreadableImage
from mapet.data.packed import RawPack
from mapet.data.unreadable import UnreadableImages
from mapet.data.workers import load
from mapet.utils.process_group import processes_here
from mapet.utils.view import CenterCropResize

Group = tuple[int, Sequence[int]]  # epoch, and indices of the images that are decoded together


@dataclass(frozen=True)
class Batch:
    """Images of one step, on the CPU unless a stream caches its images on another device.

    Attributes:
        images: (B, 3, H, W) uint8.
        index: (B,) int64, their indices in the dataset.
        epoch: from 0.
        second: (B, 3, H', W') uint8, the same crops in the second view, if there is one.
    """

    images: Tensor
    index: Tensor
    epoch: int
    second: Tensor | None = None

    @property
    def views(self) -> tuple[Tensor, ...]:
        """One image tensor or two; the last is the tokenizer's input."""
        return (self.images,) if self.second is None else (self.images, self.second)

    def pin_memory(self) -> "Batch":
        """A copy in page-locked memory; called by torch's loader."""
        second = None if self.second is None else self.second.pin_memory()
        return replace(self, images=self.images.pin_memory(), index=self.index.pin_memory(), second=second)


Faults = list[tuple[int, str]]  # index and reason of each unreadable image
Decoded = tuple[Batch, Faults]
T = TypeVar("T")


def decode(
    source: ImageDataset,
    views: Sequence[CenterCropResize],
    groups: Iterable[Group],
    *,
    crops: TransformPolicy | None = None,
    workers: int = 0,
    bad: UnreadableImages,
    pin: bool = False,
) -> Iterator[Batch]:
    """Decode one batch per group. Unreadable images are skipped, so a batch may be shorter than its group, or empty.

    Images of a uint8 pack are copied by this process, as handing them over from a worker would take longer; the disk
    reads one group ahead.

    Args:
        source: dataset.
        views: one view or two; each image is read once.
        groups: read lazily, a few groups ahead when there are workers.
        crops: random crops; None for centred ones.
        workers: worker processes; 0 decodes in this process.
        bad: list to which unreadable images are added.
        pin: return batches in page-locked memory, for a GPU.

    Raises:
        MapetError: views or crops that a uint8 pack cannot show, or too little shared memory for the workers (on the
            call); too many unreadable images, or a worker that ended (on the way).
    """
    require_shown(source, views, crops)
    pack, _ = base_dataset(source, ())
    if crops is None and isinstance(pack, RawPack):
        groups, workers = _prefetched(groups, source, pack), 0
    first, groups = _first(groups)
    size = first * 3 * sum(height * width for height, width in (view.size for view in views))
    items = load(_Groups(source, views, crops), groups, workers, pin, size, processes_here())
    return record_faults(items, source, bad)


def _first(groups: Iterable[Group]) -> tuple[int, Iterable[Group]]:
    """The number of images in the first group, which is as large as any; and all groups."""
    ahead = iter(groups)
    first = list(islice(ahead, 1))
    return sum(len(indices) for _, indices in first), chain(first, ahead)


def require_shown(
    source: ImageDataset, views: Sequence[CenterCropResize], crops: TransformPolicy | None = None
) -> None:
    """Require that the dataset can show these views and crops; a uint8 pack holds a single view.

    Raises:
        MapetError: names both and the ways out.
    """
    pack, _ = base_dataset(source, ())
    if isinstance(pack, RawPack):
        pack.require(views, crops is None or crops.whole)


def record_faults(items: Iterable[tuple[T, Faults]], source: ImageDataset, bad: UnreadableImages) -> Iterator[T]:
    """The items without their faults, which are added to ``bad``.

    Raises:
        MapetError: too many unreadable images.
    """
    for item, faults in items:
        for index, reason in faults:
            bad.add(source.image_id(index), reason)
        yield item


class _Groups(Dataset[Decoded]):
    """Decodes one group of images per item, in a worker or in the main process."""

    def __init__(self, source: ImageDataset, views: Sequence[CenterCropResize], crops: TransformPolicy | None) -> None:
        self.source, self.views, self.crops = source, views, crops

    def __getitem__(self, group: Group) -> Decoded:
        epoch, indices = group
        pack, rows = base_dataset(self.source, indices)
        if self.crops is None and isinstance(pack, RawPack):
            return _copied(pack, epoch, indices, rows)
        crops: Sequence[Transform] = self.crops(epoch, indices) if self.crops else [Crop()] * len(indices)
        images = [torch.empty((len(indices), 3, *view.size), dtype=torch.uint8) for view in self.views]
        good: list[int] = []
        faults: Faults = []
        for index, crop in zip(indices, crops, strict=True):
            try:
                image = self.source.read(index)
            except UnreadableImage as reason:
                faults.append((index, str(reason)))
                continue
            for tensor, view in zip(images, self.views, strict=True):
                tensor[len(good)] = torch.from_numpy(np.array(crop(image, view))).permute(2, 0, 1)
            good.append(index)
        first, *second = [tensor[: len(good)] for tensor in images]
        return Batch(first, torch.tensor(good, dtype=torch.int64), epoch, *second), faults


def _prefetched(groups: Iterable[Group], source: ImageDataset, pack: RawPack) -> Iterator[Group]:
    """The groups; ``pack``, the dataset below ``source``, prefetches one group ahead."""
    waiting: list[Group] = []
    for group in groups:
        pack.prefetch(base_dataset(source, group[1])[1])
        yield from waiting
        waiting = [group]
    yield from waiting


def _copied(pack: RawPack, epoch: int, indices: Sequence[int], rows: Sequence[int]) -> Decoded:
    """The images at ``indices`` of a dataset, which are the ``rows`` of the pack below it."""
    images, good = pack.pixels(rows)
    index = torch.as_tensor(indices, dtype=torch.int64)
    faults = [(indices[i], pack.reason(rows[i])) for i in np.flatnonzero(~good).tolist()]
    return Batch(torch.from_numpy(images), index[torch.from_numpy(good)], epoch), faults
