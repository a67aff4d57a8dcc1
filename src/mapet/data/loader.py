"""The three ways through a source: once in order, once into memory, and shuffled for training."""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from mapet.data.crop import Looks
from mapet.data.dataset import Source
from mapet.data.decode import Batch, Group, decode, require_shown
from mapet.data.device import to_device
from mapet.data.unreadable import BadPictures
from mapet.utils.errors import MapetError
from mapet.utils.rng import hashed
from mapet.utils.view import View

SHUFFLE = 0x5F1E  # sets the keys of shuffling apart from all other draws with the same seed
CHUNK = 64  # pictures that a worker decodes at a time on the way into memory


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
    for batch in decode(source, [view], _ascending(source, places, batch_size), workers=workers, bad=bad):
        if len(batch.index):
            yield batch


def in_memory(
    source: Source, views: Sequence[View], *, workers: int = 0, bad: BadPictures, places: Sequence[int] | None = None
) -> tuple[list[Tensor], Tensor]:
    """Decode all good pictures (or those at ``places``): (N, 3, H, W) uint8 by each view, ascending places (N,) int64.

    Raises:
        MapetError: too many bad pictures.
    """
    count = len(source) if places is None else len(places)
    images = [torch.empty((count, 3, *view.size), dtype=torch.uint8) for view in views]
    index = torch.empty(count, dtype=torch.int64)
    filled = 0
    for batch in decode(source, views, _ascending(source, places, CHUNK), workers=workers, bad=bad):
        rows = slice(filled, filled + len(batch.index))
        for whole, part in zip([*images, index], [*batch.views, batch.index], strict=True):
            whole[rows] = part
        filled = rows.stop
    return [tensor[:filled] for tensor in images], index[:filled]


def _ascending(source: Source, places: Sequence[int] | None, size: int) -> Iterator[Group]:
    chosen = range(len(source)) if places is None else sorted({int(place) for place in places})
    return ((0, chosen[first : first + size]) for first in range(0, len(chosen), size))


def steps_in(epochs: float, pictures: int, batch_size: int) -> int:
    """Whole batches in all epochs, the last of which may be a fraction; at least one."""
    return max(1, round(epochs * (pictures // batch_size)))


class Shuffled:
    """The training stream: the batch of a step is a pure function of (seed, step).

    Neither the number of processes and workers nor the step it starts from changes a picture. Epoch e runs through
    the places in the order of ``hashed(seed, SHUFFLE, e, place)``, leaves its last incomplete batch out, and gives
    process r of W the r-th contiguous part of each batch. When all decoded pictures fit into ``memory`` bytes they
    are held as uint8 on ``device``; otherwise, and with random crops, each batch is decoded as it is needed, by
    ``workers`` processes. A ``second`` view that differs from the first shows the same part of each picture.

    A bad picture is noted in ``bad`` and missing from its batch, which may thus be short, or even empty.

    Raises:
        MapetError: the batch size is not a multiple of ``world``, there are fewer pictures than one batch, or the
            source is a uint8 pack of another view or asked for crops.
    """

    def __init__(
        self,
        source: Source,
        view: View,
        *,
        second: View | None = None,
        crops: Looks | None = None,
        batch_size: int,
        epochs: float,
        seed: int,
        bad: BadPictures,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        memory: int = 2 << 30,
        places: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.source, self.crops, self.bad = source, crops, bad
        self.views = [view] if second in (None, view) else [view, second]
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
        return steps_in(self.epochs, len(self.places), self.batch_size)

    @property
    def held(self) -> bool:
        """Whether the decoded pictures are held in memory."""
        pixels = sum(height * width for height, width in (view.size for view in self.views))
        return self.crops is None and len(self.places) * 3 * pixels <= self.memory

    def sequence(self, epoch: int) -> Tensor:
        """The places (N,) int64 in the order of one epoch."""
        return self.places[hashed(self.seed, SHUFFLE, epoch, self.places).argsort(stable=True)]

    def __call__(self, start: int = 0) -> Iterator[Batch]:
        """This process's part of the batches of steps start, start + 1, …, steps - 1.

        Raises:
            MapetError: too many bad pictures.
        """
        groups = self._groups(start)
        return (self._look_up(*group) for group in groups) if self.held else self._decode(groups, self.workers)

    def at(self, epoch: int, places: Tensor) -> Batch:
        """The pictures at any ``places`` (B,) as ``epoch`` shows them, decoded by this process.

        Raises:
            MapetError: too many bad pictures.
        """
        group = epoch, places.tolist()
        return self._look_up(*group) if self.held else next(self._decode([group], workers=0))

    def _groups(self, start: int) -> Iterator[Group]:
        """Epoch and places of this process's part of each batch."""
        part = self.batch_size // self.world
        whole = self.steps_per_epoch
        for epoch in range(start // whole, math.ceil(self.steps / whole)):
            sequence = self.sequence(epoch)
            for turn in range(max(start - epoch * whole, 0), min(self.steps - epoch * whole, whole)):
                first = turn * self.batch_size + self.rank * part
                yield epoch, sequence[first : first + part].tolist()

    def _decode(self, groups: Iterable[Group], workers: int) -> Iterator[Batch]:
        pin = torch.device(self.device).type == "cuda"
        return decode(self.source, self.views, groups, crops=self.crops, workers=workers, bad=self.bad, pin=pin)

    @cached_property
    def _pictures(self) -> tuple[list[Tensor], Tensor]:
        """All good pictures by each view, and for every place of the source its row among them (-1: not there)."""
        images, index = in_memory(
            self.source, self.views, workers=self.workers, bad=self.bad, places=self.places.tolist()
        )
        rows = torch.full((len(self.source),), -1)
        rows[index] = torch.arange(len(index))
        return [tensor.to(self.device) for tensor in images], rows

    def _look_up(self, epoch: int, places: Sequence[int]) -> Batch:
        images, rows = self._pictures
        index = torch.tensor(places)
        good = index[rows[index] >= 0]
        # On a CPU ``tensor[rows]`` copies byte by byte, ``index_select`` whole pictures.
        first, *second = [tensor.index_select(0, to_device(rows[good], tensor.device)) for tensor in images]
        return Batch(first, good, epoch, *second)

    def _check(self) -> None:
        require_shown(self.source, self.views, self.crops)
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


class Stream:
    """A training stream over shuffled pictures, which is as long as they are."""

    shuffled: Shuffled

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.shuffled.steps

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one epoch."""
        return self.shuffled.steps_per_epoch
