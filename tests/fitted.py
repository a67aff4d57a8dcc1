"""Teachers without weights, images without files, and processes that are threads, for tests of k-means fits."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mapet.utils.process_group import ProcessGroup
from mapet.utils.view import CenterCropResize


class MeanColour(nn.Module):
    """A teacher that sees only its own patch: the mean colour of 4x4 pixels on a 2x3 grid."""

    name = source = "mean"
    stage, grid, width, origin, view = 0, (2, 3), 3, "random", CenterCropResize((8, 12))

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images, 4).flatten(2).transpose(1, 2)

    def describe(self) -> dict[str, str]:
        return {"name": "mean"}


class Noise(MeanColour):
    """512 channels of noise on a grid of 8x8, the same for every image but for its first pixel."""

    grid, width, view = (8, 8), 512, CenterCropResize((1, 1))
    noise = torch.rand(64, 512, generator=torch.Generator().manual_seed(0))

    def forward(self, images: Tensor) -> Tensor:
        return self.noise + images[:, 0, :, :1]


def coloured(count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """Random images (B, 3, H, W) uint8 whose 4x4 blocks differ in colour."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(256, (count, 3, size[0] // 4, size[1] // 4), generator=generator)
    return blocks.repeat_interleave(4, 2).repeat_interleave(4, 3).to(torch.uint8)


@dataclass
class Shown:
    """The ``images`` of a fit: batches of ``size``, forwards or backwards, without the ``bad`` ones.

    What was read is in ``read``.
    """

    images: Tensor
    size: int = 7
    backwards: bool = False
    bad: tuple[int, ...] = ()
    read: list[int] = field(default_factory=list)

    def __call__(self, indices: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for part in torch.split(indices.flip(0) if self.backwards else indices, self.size):
            index = torch.tensor([place for place in part.tolist() if place not in self.bad], dtype=torch.int64)
            self.read += index.tolist()
            yield self.images[index], index


@dataclass(frozen=True)
class Thread(ProcessGroup):
    """A process that is a thread: sums through a desk that all see."""

    desk: Any = None

    def sum(self, tensor: Tensor) -> Tensor:
        everyone, indices = self.desk
        indices[self.rank] = tensor.clone()
        everyone.wait(20)
        total = torch.stack(indices).sum(0, dtype=tensor.dtype)
        everyone.wait(20)
        return total


def together(count: int, work: Callable[[ProcessGroup], Any]) -> list[Any]:
    """What ``work`` gives in each of ``count`` processes at once."""
    desk = (threading.Barrier(count), [torch.empty(0)] * count)
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, [Thread(rank, count, desk) for rank in range(count)]))
