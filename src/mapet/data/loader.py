"""Three ways to read a dataset: once in order, once into memory, and shuffled for training."""

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

SHUFFLE = 0x5F1E  # salt
MOST_STEPS = 2**53
CHUNK = 64  # images per item of a worker that decodes into memory


def in_order(
    source: ImageDataset,
    view: CenterCropResize,
    batch_size: int,
    *,
    workers: int = 0,
    bad: UnreadableImages,
    indices: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Read all images (or those at ``indices``) once, in ascending order, as non-empty batches of epoch 0.

    Raises:
        MapetError: too many unreadable images.
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
    """Decode all readable images (or those at ``indices``) into memory.

    Returns:
        (N, 3, H, W) uint8 for each view, and the ascending indices (N,) int64.

    Raises:
        MapetError: too many unreadable images.
    """
    count = len(source) if indices is None else len(indices)
    images = [torch.empty((count, 3, *view.size), dtype=torch.uint8) for view in views]
    index = torch.empty(count, dtype=torch.int64)
    filled = 0
    for batch in decode(source, views, _ascending(source, indices, CHUNK), workers=workers, bad=bad):
        rows = slice(filled, filled + len(batch.index))
        for target, part in zip([*images, index], [*batch.views, batch.index], strict=True):
            target[rows] = part
        filled = rows.stop
    return [tensor[:filled] for tensor in images], index[:filled]


def _ascending(source: ImageDataset, indices: Sequence[int] | None, size: int) -> Iterator[Group]:
    chosen = range(len(source)) if indices is None else sorted({int(index) for index in indices})
    return ((0, chosen[first : first + size]) for first in range(0, len(chosen), size))


def steps_in(epochs: float, images: int, batch_size: int) -> int:
    """Full batches in ``epochs``, which may end with a fraction of an epoch; at least one.

    Raises:
        MapetError: 2^53 or more.
    """
    if (steps := epochs * (images // batch_size)) >= MOST_STEPS:
        raise MapetError(f"--epochs {epochs:g} is more than can be counted: give fewer.")
    return max(1, round(steps))


class Shuffled:
    """A training stream: the batch of a step is a pure function of (seed, step).

    The numbers of processes and workers and the first step do not change an image. Epoch e is ordered by
    ``random_bits(seed, SHUFFLE, e, index)`` and drops its last incomplete batch. An unreadable image is added to
    ``bad`` and missing from its batch, which may become empty.

    Args:
        source: dataset.
        view: crop and size of the images.
        second: second view of the same crops; ignored if equal to ``view``.
        crops: random crops; None for centred ones.
        batch_size: images per step, over all processes.
        epochs: may end with a fraction of an epoch.
        seed: random seed.
        bad: list of unreadable images.
        rank: this process, which gets the ``rank``-th contiguous part of each batch.
        world_size: number of processes.
        workers: worker processes that decode.
        memory: bytes of the cache. If all decoded images fit, they are kept as uint8 on ``device``; otherwise, and with
            ``crops``, each batch is decoded when it is needed.
        indices: images to use; None for all.
        device: device of the cache, and for which batches are pinned.

    Raises:
        MapetError: the batch size is not a multiple of ``world_size``, there are fewer images than one batch, or the
            dataset is a uint8 pack that cannot show the views or crops.
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
        world_size: int = 1,
        workers: int = 0,
        memory: int = 2 << 30,
        indices: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.source, self.crops, self.bad = source, crops, bad
        self.views = [view] if second in (None, view) else [view, second]
        self.batch_size, self.epochs, self.seed = batch_size, epochs, seed
        self.rank, self.world_size, self.workers = rank, world_size, workers
        self.memory, self.device = memory, device
        self.indices = torch.arange(len(source)) if indices is None else torch.unique(indices.cpu().long())
        self._check()

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one epoch."""
        return len(self.indices) // self.batch_size

    @property
    def steps(self) -> int:
        """Batches in all epochs."""
        return steps_in(self.epochs, len(self.indices), self.batch_size)

    @property
    def held(self) -> bool:
        """Whether the decoded images are cached in memory."""
        pixels = sum(height * width for height, width in (view.size for view in self.views))
        return self.crops is None and len(self.indices) * 3 * pixels <= self.memory

    def sequence(self, epoch: int) -> Tensor:
        """The indices (N,) int64 in the order of one epoch."""
        return self.indices[random_bits(self.seed, SHUFFLE, epoch, self.indices).argsort(stable=True)]

    def __call__(self, start: int = 0) -> Iterator[Batch]:
        """This process's part of the batches of steps start, start + 1, …, steps - 1.

        Raises:
            MapetError: too many unreadable images.
        """
        groups = self._groups(start)
        return (self._look_up(*group) for group in groups) if self.held else self._decode(groups, self.workers)

    def at(self, epoch: int, indices: Tensor) -> Batch:
        """The images at ``indices`` (B,) with the crops of ``epoch``, decoded by this process.

        Raises:
            MapetError: too many unreadable images.
        """
        group = epoch, indices.tolist()
        return self._look_up(*group) if self.held else next(self._decode([group], workers=0))

    def _groups(self, start: int) -> Iterator[Group]:
        """Epoch and indices of this process's part of each batch."""
        part = self.batch_size // self.world_size
        length = self.steps_per_epoch
        for epoch in range(start // length, math.ceil(self.steps / length)):
            sequence = self.sequence(epoch)
            for step in range(max(start - epoch * length, 0), min(self.steps - epoch * length, length)):
                first = step * self.batch_size + self.rank * part
                yield epoch, sequence[first : first + part].tolist()

    def _decode(self, groups: Iterable[Group], workers: int) -> Iterator[Batch]:
        pin = torch.device(self.device).type == "cuda"
        return decode(self.source, self.views, groups, crops=self.crops, workers=workers, bad=self.bad, pin=pin)

    @cached_property
    def _images(self) -> tuple[list[Tensor], Tensor]:
        """All readable images in each view, and the row among them for every index of the dataset, or -1."""
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
        # On a CPU ``tensor[rows]`` copies byte by byte, ``index_select`` image by image.
        first, *second = [tensor.index_select(0, to_device(rows[good], tensor.device)) for tensor in images]
        return Batch(first, good, epoch, *second)

    def _check(self) -> None:
        require_shown(self.source, self.views, self.crops)
        size = self.batch_size
        if size < 1 or size % self.world_size:
            raise MapetError(
                f"--batch-size must be a positive multiple of the {self.world_size} processes, got {size}."
            )
        if len(self.indices) < size:
            raise MapetError(
                f"{self.source.name} has {len(self.indices)} images, fewer than one batch of {size}: "
                "lower --batch-size or add images."
            )


class Stream:
    """Base class of training streams over shuffled images."""

    shuffled: Shuffled

    @property
    def steps(self) -> int:
        """Total steps."""
        return self.shuffled.steps

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one epoch."""
        return self.shuffled.steps_per_epoch
