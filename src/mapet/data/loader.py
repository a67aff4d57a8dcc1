"""The three ways through a source: once in order, once into memory, and shuffled for training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mapet.data.bad import BadPictures
from mapet.data.decode import decode
from mapet.data.source import Source
from mapet.errors import MapetError
from mapet.hashing import hashed
from mapet.view import View

SHUFFLE = 0x5F1E  # sets the keys of shuffling apart from all other draws with the same seed
CHUNK = 64  # pictures that a worker decodes at a time on the way into memory


@dataclass(frozen=True)
class Batch:
    """Pictures of one step: ``images`` (B, 3, H, W) uint8; ``index`` (B,) int64, their places in the source.

    Both lie on the CPU, except for the images of a stream that holds its pictures on another device.
    """

    images: Tensor
    index: Tensor
    epoch: int


def in_order(
    source: Source,
    view: View,
    batch_size: int,
    *,
    workers: int = 0,
    bad: BadPictures,
    places: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Every picture (or those at ``places``) once, in ascending order, as batches of epoch 0; no batch is empty.

    Raises:
        MapetError: too many bad pictures.
    """
    chosen = range(len(source)) if places is None else sorted({int(place) for place in places})
    groups = (chosen[first : first + batch_size] for first in range(0, len(chosen), batch_size))
    for images, index in decode(source, view, groups, workers=workers, bad=bad):
        if len(index):
            yield Batch(images, index, epoch=0)


def in_memory(
    source: Source, view: View, *, workers: int = 0, bad: BadPictures, places: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Decode all good pictures (or those at ``places``): (images (N, 3, H, W) uint8, ascending places (N,) int64).

    Raises:
        MapetError: too many bad pictures.
    """
    count = len(source) if places is None else len(places)
    images = torch.empty((count, 3, *view.size), dtype=torch.uint8)
    index = torch.empty(count, dtype=torch.int64)
    filled = 0
    for batch in in_order(source, view, CHUNK, workers=workers, bad=bad, places=places):
        end = filled + len(batch.index)
        images[filled:end], index[filled:end] = batch.images, batch.index
        filled = end
    return images[:filled], index[:filled]


class Shuffled:
    """The training stream: the batch of a step is a pure function of (seed, step).

    Neither the number of processes and workers nor the step it starts from changes a picture. Epoch e runs through
    the places in the order of ``hashed(seed, SHUFFLE, e, place)``, leaves its last incomplete batch out, and gives
    process r of W the r-th contiguous part of each batch. When all decoded pictures fit into ``memory`` bytes they
    are held as uint8 on ``device``; otherwise each batch is decoded as it is needed, by ``workers`` processes.

    A bad picture is noted in ``bad`` and missing from its batch, which may thus be short, or even empty.

    Raises:
        MapetError: the batch size is not a multiple of ``world``, or there are fewer pictures than one batch.
    """

    def __init__(
        self,
        source: Source,
        view: View,
        *,
        batch_size: int,
        epochs: int,
        seed: int,
        bad: BadPictures,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        memory: int = 2 << 30,
        places: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.source, self.view, self.bad = source, view, bad
        self.batch_size, self.epochs, self.seed = batch_size, epochs, seed
        self.rank, self.world, self.workers = rank, world, workers
        self.memory, self.device = memory, device
        self.places = torch.arange(len(source)) if places is None else torch.unique(places.cpu().long())
        self._check()

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass."""
        return len(self.places) // self.batch_size

    @property
    def steps(self) -> int:
        """Batches in all epochs."""
        return self.epochs * self.steps_per_epoch

    @property
    def held(self) -> bool:
        """Whether the decoded pictures are held in memory."""
        height, width = self.view.size
        return len(self.places) * 3 * height * width <= self.memory

    def sequence(self, epoch: int) -> Tensor:
        """The places (N,) int64 in the order of one epoch."""
        return self.places[hashed(self.seed, SHUFFLE, epoch, self.places).argsort(stable=True)]

    def __call__(self, start: int = 0) -> Iterator[Batch]:
        """This process's part of the batches of steps start, start + 1, …, steps - 1.

        Raises:
            MapetError: too many bad pictures.
        """
        found = map(self._look_up, self._parts(start)) if self.held else self._decode(start)
        for step, (images, index) in enumerate(found, start):
            yield Batch(images, index, epoch=step // self.steps_per_epoch)

    def _parts(self, start: int) -> Iterator[Tensor]:
        """The places of this process's part of each batch."""
        part = self.batch_size // self.world
        for epoch in range(start // self.steps_per_epoch, self.epochs):
            sequence = self.sequence(epoch)
            for turn in range(max(start - epoch * self.steps_per_epoch, 0), self.steps_per_epoch):
                first = turn * self.batch_size + self.rank * part
                yield sequence[first : first + part]

    def _decode(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        groups = (part.tolist() for part in self._parts(start))
        return decode(self.source, self.view, groups, workers=self.workers, bad=self.bad)

    @cached_property
    def _pictures(self) -> tuple[Tensor, Tensor]:
        """All good pictures, and for every place of the source its row among them (-1: not there)."""
        images, index = in_memory(
            self.source, self.view, workers=self.workers, bad=self.bad, places=self.places.tolist()
        )
        rows = torch.full((len(self.source),), -1)
        rows[index] = torch.arange(len(index))
        return images.to(self.device), rows

    def _look_up(self, places: Tensor) -> tuple[Tensor, Tensor]:
        images, rows = self._pictures
        good = places[rows[places] >= 0]
        return images[rows[good].to(images.device)], good

    def _check(self) -> None:
        size = self.batch_size
        if size < 1 or size % self.world:
            raise MapetError(
                f"A batch of {size} cannot be shared by {self.world} processes: "
                f"choose a positive multiple of {self.world} for --batch-size."
            )
        if len(self.places) < size:
            raise MapetError(
                f"{self.source.name} gives {len(self.places)} pictures, fewer than one batch of {size}: "
                "lower --batch-size or add pictures."
            )
