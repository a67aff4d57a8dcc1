"""The three ways through a source: once in order, once into memory, and shuffled for training."""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from mapet.data.crop import TransformPolicy
from mapet.data.dataset import ImageDataset
from mapet.data.decode import Batch, Group, decode, require_shown
from mapet.data.device import to_device
from mapet.data.unreadable import UnreadableImages
from mapet.utils.errors import MapetError
from mapet.utils.rng import random_bits
from mapet.utils.view import CenterCropResize

SHUFFLE = 0x5F1E  # sets the keys of shuffling apart from all other draws with the same seed
CHUNK = 64  # images that a worker decodes at a time on the way into memory


def in_order(
    source: ImageDataset,
    view: CenterCropResize,
    batch_size: int,
    *,
    workers: int = 0,
    bad: UnreadableImages,
    indices: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Every image (or those at ``indices``) once, in ascending order, as batches of epoch 0; no batch is empty.

    Raises:
        MapetError: too many bad images.
    """
    for batch in decode(source, [view], _ascending(source, indices, batch_size), workers=workers, bad=bad):
        if len(batch.index):
            yield batch


def in_memory(
    source: ImageDataset,
    views: Sequence[CenterCropResize],
    *,
    workers: int = 0,
    bad: UnreadableImages,
    indices: Sequence[int] | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Decode all good images (or those at ``indices``): (N, 3, H, W) uint8 by each view, ascending places (N,) int64.

    Raises:
        MapetError: too many bad images.
    """
    count = len(source) if indices is None else len(indices)
    images = [torch.empty((count, 3, *view.size), dtype=torch.uint8) for view in views]
    index = torch.empty(count, dtype=torch.int64)
    filled = 0
    for batch in decode(source, views, _ascending(source, indices, CHUNK), workers=workers, bad=bad):
        rows = slice(filled, filled + len(batch.index))
        for whole, part in zip([*images, index], [*batch.views, batch.index], strict=True):
            whole[rows] = part
        filled = rows.stop
    return [tensor[:filled] for tensor in images], index[:filled]


def _ascending(source: ImageDataset, indices: Sequence[int] | None, size: int) -> Iterator[Group]:
    chosen = range(len(source)) if indices is None else sorted({int(place) for place in indices})
    return ((0, chosen[first : first + size]) for first in range(0, len(chosen), size))


def steps_in(epochs: float, images: int, batch_size: int) -> int:
    """Whole batches in all epochs, the last of which may be a fraction; at least one."""
    return max(1, round(epochs * (images // batch_size)))


class Shuffled:
    """The training stream: the batch of a step is a pure function of (seed, step).

    Neither the number of processes and workers nor the step it starts from changes an image. Epoch e runs through
    the places in the order of ``random_bits(seed, SHUFFLE, e, place)``, leaves its last incomplete batch out, and gives
    process r of W the r-th contiguous part of each batch. When all decoded images fit into ``memory`` bytes they
    are held as uint8 on ``device``; otherwise, and with random crops, each batch is decoded as it is needed, by
    ``workers`` processes. A ``second`` view that differs from the first shows the same part of each image.

    A bad image is noted in ``bad`` and missing from its batch, which may thus be short, or even empty.

    Raises:
        MapetError: the batch size is not a multiple of ``world``, there are fewer images than one batch, or the
            source is a uint8 pack of another view or asked for crops.
    """

    def __init__(
        self,
        source: ImageDataset,
        view: CenterCropResize,
        *,
        second: CenterCropResize | None = None,
        crops: TransformPolicy | None = None,
        batch_size: int,
        epochs: float,
        seed: int,
        bad: UnreadableImages,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        memory: int = 2 << 30,
        indices: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.source, self.crops, self.bad = source, crops, bad
        self.views = [view] if second in (None, view) else [view, second]
        self.batch_size, self.epochs, self.seed = batch_size, epochs, seed
        self.rank, self.world, self.workers = rank, world, workers
        self.memory, self.device = memory, device
        self.indices = torch.arange(len(source)) if indices is None else torch.unique(indices.cpu().long())
        self._check()

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass."""
        return len(self.indices) // self.batch_size

    @property
    def steps(self) -> int:
        """Batches in all epochs."""
        return steps_in(self.epochs, len(self.indices), self.batch_size)

    @property
    def held(self) -> bool:
        """Whether the decoded images are held in memory."""
        pixels = sum(height * width for height, width in (view.size for view in self.views))
        return self.crops is None and len(self.indices) * 3 * pixels <= self.memory

    def sequence(self, epoch: int) -> Tensor:
        """The places (N,) int64 in the order of one epoch."""
        return self.indices[random_bits(self.seed, SHUFFLE, epoch, self.indices).argsort(stable=True)]

    def __call__(self, start: int = 0) -> Iterator[Batch]:
        """This process's part of the batches of steps start, start + 1, …, steps - 1.

        Raises:
            MapetError: too many bad images.
        """
        groups = self._groups(start)
        return (self._look_up(*group) for group in groups) if self.held else self._decode(groups, self.workers)

    def at(self, epoch: int, indices: Tensor) -> Batch:
        """The images at any ``indices`` (B,) as ``epoch`` shows them, decoded by this process.

        Raises:
            MapetError: too many bad images.
        """
        group = epoch, indices.tolist()
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
    def _images(self) -> tuple[list[Tensor], Tensor]:
        """All good images by each view, and for every place of the source its row among them (-1: not there)."""
        images, index = in_memory(
            self.source, self.views, workers=self.workers, bad=self.bad, indices=self.indices.tolist()
        )
        rows = torch.full((len(self.source),), -1)
        rows[index] = torch.arange(len(index))
        return [tensor.to(self.device) for tensor in images], rows

    def _look_up(self, epoch: int, indices: Sequence[int]) -> Batch:
        images, rows = self._images
        index = torch.tensor(indices)
        good = index[rows[index] >= 0]
        # On a CPU ``tensor[rows]`` copies byte by byte, ``index_select`` whole images.
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
        if len(self.indices) < size:
            raise MapetError(
                f"{self.source.name} gives {len(self.indices)} images, fewer than one batch of {size}: "
                "lower --batch-size or add images."
            )


class Stream:
    """A training stream over shuffled images, which is as long as they are."""

    shuffled: Shuffled

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.shuffled.steps

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one epoch."""
        return self.shuffled.steps_per_epoch
