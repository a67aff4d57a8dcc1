"""Pictures of a source → uint8 tensors, in this process or in workers, in the order asked for."""

import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mapet.data.bad import BadPictures
from mapet.data.picture import BadPicture
from mapet.data.source import Source
from mapet.view import View

Decoded = tuple[Tensor, Tensor, list[tuple[int, str]]]  # images, their places, (place, reason) of the bad ones


def decode(
    source: Source, view: View, groups: Iterable[Sequence[int]], *, workers: int = 0, bad: BadPictures
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each group of places the pictures that are good: (images (B, 3, H, W) uint8, places (B,) int64).

    The groups are drawn lazily, a few ahead of the result when there are workers; bad pictures are noted in ``bad``
    and left out, so that B may fall short of the group's length, down to 0.

    Raises:
        MapetError: too many bad pictures.
    """
    for images, places, faults in _loader(source, view, groups, workers):
        for place, reason in faults:
            bad.add(source.key(place), reason)
        yield images, places


class _Groups(Dataset[Decoded]):
    """Decodes one group of places per item; workers do nothing else."""

    def __init__(self, source: Source, view: View) -> None:
        self.source = source
        self.view = view

    def __getitem__(self, places: Sequence[int]) -> Decoded:
        images = torch.empty((len(places), 3, *self.view.size), dtype=torch.uint8)
        good: list[int] = []
        faults: list[tuple[int, str]] = []
        for place in places:
            try:
                picture = self.view(self.source.read(place))
            except BadPicture as reason:
                faults.append((place, str(reason)))
                continue
            images[len(good)] = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
            good.append(place)
        return images[: len(good)], torch.tensor(good, dtype=torch.int64), faults


def _loader(source: Source, view: View, groups: Iterable[Sequence[int]], workers: int) -> DataLoader[Decoded]:
    """A loader over whole groups. Its generator is its own: the default would draw from torch's global one."""
    return DataLoader(
        _Groups(source, view),
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
