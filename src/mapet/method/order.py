"""Orders: in which sequence an image's positions are known and revealed.

An order is an int64 tensor (B, 1 + L) of positions, 0 = CLS and p + 1 = patch p, CLS first. Sliced, it replaces boolean
masks, ids_restore and index pairs: its first entries are the context, its last ones are hidden.

Each strategy is a distribution over orders with one signature, ``strategy(grid, hidden, seed, epoch, index)``, and a
pure function of its arguments, row by row: bit-identical on CPU and GPU and under any split of the batch.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from mapet.hashing import below, hashed

Grid = tuple[int, int]
Strategy = Callable[[Grid, int, int, int, Tensor], Tensor]

ASPECTS = 64  # log-spaced aspect ratios from 0.3 to 1 / 0.3
SMALLEST_BLOCK = 16  # patches
ATTEMPTS = 10  # refused rectangles in a row after which BEiT stops
CHOICE, BLOCK = 1, 2  # salts: independent streams of chance


def uniform(grid: Grid, hidden: int, seed: int, epoch: int, index: Tensor) -> Tensor:
    """Any permutation of the patches, all equally likely (the paper's choice; ``hidden`` has no influence).

    Args:
        grid: rows and columns of patches.
        hidden: how many patches will be predicted.
        seed: of the whole run.
        epoch: of this visit to the images.
        index: (B,) int64, each image's place in its source.

    Returns:
        (B, 1 + L) int64 on ``index``'s device.
    """
    return _with_cls(_chance(grid, seed, epoch, index).argsort(dim=1, stable=True))


def raster(grid: Grid, hidden: int, seed: int, epoch: int, index: Tensor) -> Tensor:
    """Row by row from the top left, as a language model reads: the same for every image. Arguments as ``uniform``."""
    patches = torch.arange(grid[0] * grid[1], device=index.device)
    return _with_cls(patches.expand(len(index), -1))


def blockwise(grid: Grid, hidden: int, seed: int, epoch: int, index: Tensor) -> Tensor:
    """Hide whole rectangles, as BEiT does (Bao et al., arXiv 2106.08254, algorithm 1). Arguments as ``uniform``.

    Rectangles of at least 16 patches and log-uniform aspect are hidden while they fit into what is left to hide; what
    they leave over is hidden singly, so exactly ``hidden`` patches stand at the end, in a uniformly random sequence.
    """
    covered = _rectangles(grid, hidden, seed, epoch, index).flatten(1)
    chance = _chance(grid, seed, epoch, index).argsort(dim=1, stable=True)
    late = covered.gather(1, chance).argsort(dim=1, stable=True)  # covered last, else by chance
    order = chance.gather(1, late)
    cut = order.shape[1] - hidden
    return _with_cls(torch.cat([order[:, :cut], _reshuffled(order[:, cut:], seed, epoch, index)], dim=1))


STRATEGIES: dict[str, Strategy] = {"uniform": uniform, "blockwise": blockwise, "raster": raster}


def take(rows: Tensor, places: Tensor) -> Tensor:
    """(B, 1 + L, D) rows by position and (B, K) positions, a slice of an order → (B, K, D)."""
    return rows.gather(1, places[:, :, None].expand(-1, -1, rows.shape[-1]))


def _chance(grid: Grid, seed: int, epoch: int, index: Tensor, salt: int = CHOICE) -> Tensor:
    patches = torch.arange(grid[0] * grid[1], device=index.device)
    return hashed(seed, salt, epoch, index[:, None], patches)


def _reshuffled(patches: Tensor, seed: int, epoch: int, index: Tensor) -> Tensor:
    keys = hashed(seed, CHOICE, epoch, index[:, None], ~patches)
    return patches.gather(1, keys.argsort(dim=1, stable=True))


def _with_cls(patches: Tensor) -> Tensor:
    return torch.cat([patches.new_zeros(len(patches), 1), patches + 1], dim=1)


def _rectangles(grid: Grid, hidden: int, seed: int, epoch: int, index: Tensor) -> Tensor:
    """(B, rows, columns) bool: the patches that BEiT's rectangles cover, at most ``hidden`` of them."""
    sides = _sides(grid[0] * grid[1]).to(index.device)
    row, column = (torch.arange(side, device=index.device) for side in grid)
    covered = torch.zeros(len(index), *grid, dtype=torch.bool, device=index.device)
    refused = torch.zeros_like(index)
    for attempt in range(hidden * ATTEMPTS):
        left = hidden - covered.sum((1, 2))
        active = (left > 0) & (refused < ATTEMPTS)
        if not active.any():
            break
        top, bottom, start, end = _propose(grid, left, sides, (seed, BLOCK, epoch, index, attempt))
        inside = (row >= top[:, None]) & (row < bottom[:, None])
        block = inside[:, :, None] & ((column >= start[:, None]) & (column < end[:, None]))[:, None]
        new = (block & ~covered).sum((1, 2))
        taken = active & (new > 0) & (new <= left) & (bottom <= grid[0]) & (end <= grid[1])
        covered |= block & taken[:, None, None]
        refused = torch.where(taken, 0, refused + 1)
    return covered


def _propose(grid: Grid, left: Tensor, sides: Tensor, keys: tuple[int | Tensor, ...]) -> tuple[Tensor, ...]:
    """First and one-past-last row and column of one rectangle an image, each (B,); too large ones end outside."""
    low, high = left.clamp(max=SMALLEST_BLOCK), left.clamp(min=SMALLEST_BLOCK)
    area = (low + below(high - low + 1, *keys, 0)).clamp(1, len(sides) - 1)
    height, width = sides[area, below(ASPECTS, *keys, 1)].unbind(-1)
    top = below((grid[0] - height + 1).clamp(min=1), *keys, 2)
    start = below((grid[1] - width + 1).clamp(min=1), *keys, 3)
    return top, top + height, start, start + width


@lru_cache(maxsize=8)
def _sides(largest: int) -> Tensor:
    """(1 + largest, ASPECTS, 2) int64: height and width by area and aspect, rounded once on the CPU for all devices."""
    logs = torch.linspace(math.log(0.3), -math.log(0.3), ASPECTS, dtype=torch.float64)
    area = torch.arange(1 + largest, dtype=torch.float64)[:, None]
    sides = torch.stack([(area * logs.exp()).sqrt(), (area / logs.exp()).sqrt()], dim=-1)
    return sides.round().long().clamp(min=1)
