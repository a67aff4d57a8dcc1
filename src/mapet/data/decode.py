"""Images of a source → uint8 tensors, in this process or in workers, in the order asked for."""

import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mapet.data.crop import Crop, Transform, TransformPolicy
from mapet.data.dataset import ImageDataset, unwrapped
from mapet.data.image import UnreadableImage
from mapet.data.packed import RawPack
from mapet.data.unreadable import UnreadableImages
from mapet.utils.view import CenterCropResize

Group = tuple[int, Sequence[int]]  # an epoch and the places of the images that are decoded together


@dataclass(frozen=True)
class Batch:
    """Images of one step: ``images`` (B, 3, H, W) uint8; ``index`` (B,) int64, their places in the source.

    ``second`` (B, 3, H', W') uint8 is the same part of the same images by the second view, where there is one. All
    lie on the CPU, except for the images of a stream that holds its images on another device.
    """

    images: Tensor
    index: Tensor
    epoch: int
    second: Tensor | None = None

    @property
    def views(self) -> tuple[Tensor, ...]:
        """One image tensor or two; the last is what the tokens are of."""
        return (self.images,) if self.second is None else (self.images, self.second)

    def pin_memory(self) -> "Batch":
        """In page-locked memory, from which a GPU copies by itself; called by torch's loader."""
        second = None if self.second is None else self.second.pin_memory()
        return replace(self, images=self.images.pin_memory(), index=self.index.pin_memory(), second=second)


Faults = list[tuple[int, str]]  # place and reason of each bad image
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
    """For each group the images that are good, each read once for one view or two; without ``crops`` centred.

    The groups are drawn lazily, a few ahead of the result when there are workers; bad images are noted in ``bad``
    and left out, so that B may fall short of the group's length, down to 0. Images that lie ready in a uint8 pack are
    copied by this process, whatever ``workers``: handing them over would take longer. The disk reads one group ahead.
    For a GPU ``pin`` puts the batches into page-locked memory.

    Raises:
        MapetError: views or crops that a uint8 pack cannot show (at once), too many bad images (on the way).
    """
    require_shown(source, views, crops)
    pack, _ = unwrapped(source, ())
    if crops is None and isinstance(pack, RawPack):
        groups, workers = _announced(groups, source, pack), 0
    return noted(loaded(_Groups(source, views, crops), groups, workers, pin), source, bad)


def require_shown(
    source: ImageDataset, views: Sequence[CenterCropResize], crops: TransformPolicy | None = None
) -> None:
    """Refuse what the source cannot show: a uint8 pack has one view of each image, and nothing else of it.

    Raises:
        MapetError: both sides and the ways out are named.
    """
    pack, _ = unwrapped(source, ())
    if isinstance(pack, RawPack):
        pack.require(views, crops is None or crops.whole)


def noted(items: Iterable[tuple[T, Faults]], source: ImageDataset, bad: UnreadableImages) -> Iterator[T]:
    """What comes beside the faults, which are noted in ``bad``.

    Raises:
        MapetError: too many bad images.
    """
    for item, faults in items:
        for place, reason in faults:
            bad.add(source.image_id(place), reason)
        yield item


class _Groups(Dataset[Decoded]):
    """Decodes one group of images per item; workers do nothing else."""

    def __init__(self, source: ImageDataset, views: Sequence[CenterCropResize], crops: TransformPolicy | None) -> None:
        self.source, self.views, self.crops = source, views, crops

    def __getitem__(self, group: Group) -> Decoded:
        epoch, indices = group
        pack, rows = unwrapped(self.source, indices)
        if self.crops is None and isinstance(pack, RawPack):
            return _copied(pack, epoch, indices, rows)
        crops: Sequence[Transform] = self.crops(epoch, indices) if self.crops else [Crop()] * len(indices)
        images = [torch.empty((len(indices), 3, *view.size), dtype=torch.uint8) for view in self.views]
        good: list[int] = []
        faults: Faults = []
        for place, crop in zip(indices, crops, strict=True):
            try:
                image = self.source.read(place)
            except UnreadableImage as reason:
                faults.append((place, str(reason)))
                continue
            for tensor, view in zip(images, self.views, strict=True):
                tensor[len(good)] = torch.from_numpy(np.array(crop(image, view))).permute(2, 0, 1)
            good.append(place)
        first, *second = [tensor[: len(good)] for tensor in images]
        return Batch(first, torch.tensor(good, dtype=torch.int64), epoch, *second), faults


def _announced(groups: Iterable[Group], source: ImageDataset, pack: RawPack) -> Iterator[Group]:
    """The groups, each known to ``pack``, which lies below ``source``, when the one before it is handed out."""
    waiting: list[Group] = []
    for group in groups:
        pack.expect(unwrapped(source, group[1])[1])
        yield from waiting
        waiting = [group]
    yield from waiting


def _copied(pack: RawPack, epoch: int, indices: Sequence[int], rows: Sequence[int]) -> Decoded:
    """The images at ``indices`` of a source, which are those at ``rows`` of a pack below it."""
    images, good = pack.pixels(rows)
    index = torch.as_tensor(indices, dtype=torch.int64)
    faults = [(indices[i], pack.reason(rows[i])) for i in np.flatnonzero(~good).tolist()]
    return Batch(torch.from_numpy(images), index[torch.from_numpy(good)], epoch), faults


def loaded(items: Dataset[T], groups: Iterable[Group], workers: int, pin: bool = False) -> DataLoader[T]:
    """An item of ``items`` for each whole group. The generator is its own: the default would draw from torch's."""
    return DataLoader(
        items,
        batch_size=None,
        sampler=groups,
        num_workers=workers,
        collate_fn=_as_is,
        pin_memory=pin,
        worker_init_fn=_leave_ending_to_main,
        generator=torch.Generator(),
    )


def _as_is(decoded: Any) -> Any:
    return decoded


def _leave_ending_to_main(worker: int) -> None:
    """Ctrl-C reaches every process of the terminal; only the main one may act on it, so that it ends in order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _unless_nobody_listens


def _unless_nobody_listens(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A worker that was handing over a batch when the main process ended has nothing to report."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)
