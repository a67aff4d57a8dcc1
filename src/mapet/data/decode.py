"""Pictures of a source → uint8 tensors, in this process or in workers, in the order asked for."""

import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mapet.data.bad import BadPictures
from mapet.data.crop import Crop, Look, Looks
from mapet.data.picture import BadPicture
from mapet.data.source import Source
from mapet.view import View

Group = tuple[int, Sequence[int]]  # an epoch and the places of the pictures that are decoded together


@dataclass(frozen=True)
class Batch:
    """Pictures of one step: ``images`` (B, 3, H, W) uint8; ``index`` (B,) int64, their places in the source.

    ``second`` (B, 3, H', W') uint8 is the same part of the same pictures by the second view, where there is one. All
    lie on the CPU, except for the images of a stream that holds its pictures on another device.
    """

    images: Tensor
    index: Tensor
    epoch: int
    second: Tensor | None = None

    @property
    def views(self) -> tuple[Tensor, ...]:
        """One image tensor or two; the last is what the tokens are of."""
        return (self.images,) if self.second is None else (self.images, self.second)


Decoded = tuple[Batch, list[tuple[int, str]]]  # and (place, reason) of the bad pictures


def decode(
    source: Source,
    views: Sequence[View],
    groups: Iterable[Group],
    *,
    crops: Looks | None = None,
    workers: int = 0,
    bad: BadPictures,
) -> Iterator[Batch]:
    """For each group the pictures that are good, each read once for one view or two; without ``crops`` centred.

    The groups are drawn lazily, a few ahead of the result when there are workers; bad pictures are noted in ``bad``
    and left out, so that B may fall short of the group's length, down to 0.

    Raises:
        MapetError: too many bad pictures.
    """
    for batch, faults in _loader(_Groups(source, views, crops), groups, workers):
        for place, reason in faults:
            bad.add(source.key(place), reason)
        yield batch


class _Groups(Dataset[Decoded]):
    """Decodes one group of pictures per item; workers do nothing else."""

    def __init__(self, source: Source, views: Sequence[View], crops: Looks | None) -> None:
        self.source, self.views, self.crops = source, views, crops

    def __getitem__(self, group: Group) -> Decoded:
        epoch, places = group
        crops: Sequence[Look] = self.crops(epoch, places) if self.crops else [Crop()] * len(places)
        images = [torch.empty((len(places), 3, *view.size), dtype=torch.uint8) for view in self.views]
        good: list[int] = []
        faults: list[tuple[int, str]] = []
        for place, crop in zip(places, crops, strict=True):
            try:
                picture = self.source.read(place)
            except BadPicture as reason:
                faults.append((place, str(reason)))
                continue
            for tensor, view in zip(images, self.views, strict=True):
                tensor[len(good)] = torch.from_numpy(np.array(crop(picture, view))).permute(2, 0, 1)
            good.append(place)
        first, *second = [tensor[: len(good)] for tensor in images]
        return Batch(first, torch.tensor(good, dtype=torch.int64), epoch, *second), faults


def _loader(decoded: _Groups, groups: Iterable[Group], workers: int) -> DataLoader[Decoded]:
    """A loader over whole groups. Its generator is its own: the default would draw from torch's global one."""
    return DataLoader(
        decoded,
        batch_size=None,
        sampler=groups,
        num_workers=workers,
        collate_fn=_as_is,
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
