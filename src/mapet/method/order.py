"""Orders: in which sequence an image's positions are known and revealed.

An order is an int64 tensor (B, 1 + L) of positions, 0 = CLS and p + 1 = patch p, CLS first. Sliced, it replaces boolean
masks, ids_restore and index pairs: its first entries are the context, its last ones are masked.

Each strategy is a distribution over orders with one signature, ``strategy(grid, num_masked, seed, epoch, index)``,
and a pure function of its arguments, row by row: bit-identical on CPU and GPU and under any split of the batch.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from mapet.utils.rng import random_bits, random_uint32

Grid = tuple[int, int]
Strategy = Callable[[Grid, int, int, int, Tensor], Tensor]

ASPECTS = 64  # log-spaced aspect ratios from 0.3 to 1 / 0.3
SMALLEST_BLOCK = 16  # patches
ATTEMPTS = 10  # refused rectangles in a row after which BEiT stops
AHEAD = 32  # attempts whose numbers are drawn for all images at once; few images need more
CHOICE, BLOCK = 1, 2  # salts: independent streams of chance


def uniform(grid: Grid, num_masked: int, seed: int, epoch: int, index: Tensor) -> Tensor:
    """Any permutation of the patches, all equally likely (the paper's choice; ``num_masked`` has no influence).

    Args:
        grid: rows and columns of patches.
        num_masked: how many patches will be predicted.
        seed: of the whole run.
        epoch: of this visit to the images.
        index: (B,) int64, each image's place in its source.

    Returns:
        (B, 1 + L) int64 on ``index``'s device.
    """
    return _with_cls(_chance(grid, seed, epoch, index).argsort(dim=1, stable=True))


def raster(grid: Grid, num_masked: int, seed: int, epoch: int, index: Tensor) -> Tensor:
    """Row by row from the top left, as a language model reads: the same for every image. Arguments as ``uniform``."""
    patches = torch.arange(grid[0] * grid[1], device=index.device)
    return _with_cls(patches.expand(len(index), -1))


def blockwise(grid: Grid, num_masked: int, seed: int, epoch: int, index: Tensor) -> Tensor:
    """Hide whole rectangles, as BEiT does (Bao et al., arXiv 2106.08254, algorithm 1). Arguments as ``uniform``.

    Rectangles of at least 16 patches and log-uniform aspect are hidden while they fit into what is left to hide; what
    they leave over is hidden singly, so exactly ``num_masked`` patches come last, in a uniformly random sequence.
    The rectangles are found on the CPU: with ``index`` on a GPU that waits for it.
    """
    covered = _rectangles(grid, num_masked, seed, epoch, index)
    chance = _chance(grid, seed, epoch, index).argsort(dim=1, stable=True)
    late = covered.gather(1, chance).argsort(dim=1, stable=True)  # covered last, else by chance
    order = chance.gather(1, late)
    cut = order.shape[1] - num_masked
    return _with_cls(torch.cat([order[:, :cut], _reshuffled(order[:, cut:], seed, epoch, index)], dim=1))


STRATEGIES: dict[str, Strategy] = {"uniform": uniform, "blockwise": blockwise, "raster": raster}


def gather_rows(rows: Tensor, places: Tensor) -> Tensor:
    """(B, 1 + L, D) rows by position and (B, K) positions, a slice of an order → (B, K, D)."""
    return rows.gather(1, places[:, :, None].expand(-1, -1, rows.shape[-1]))


def _chance(grid: Grid, seed: int, epoch: int, index: Tensor, salt: int = CHOICE) -> Tensor:
    patches = torch.arange(grid[0] * grid[1], device=index.device)
    return random_bits(seed, salt, epoch, index[:, None], patches)


def _reshuffled(patches: Tensor, seed: int, epoch: int, index: Tensor) -> Tensor:
    keys = random_bits(seed, CHOICE, epoch, index[:, None], ~patches)
    return patches.gather(1, keys.argsort(dim=1, stable=True))


def _with_cls(patches: Tensor) -> Tensor:
    return torch.cat([patches.new_zeros(len(patches), 1), patches + 1], dim=1)


def _rectangles(grid: Grid, num_masked: int, seed: int, epoch: int, index: Tensor) -> Tensor:
    """(B, L) uint8: 1 for the patches that BEiT's rectangles cover, at most ``num_masked``, and 0 for the others.

    One image after another, as integers whose bits are patches: in tensors of a batch it takes five times as long.
    """
    places = index.cpu()[:, None]
    masks = [
        _covered(grid, num_masked, itertools.chain(ready, _further(seed, epoch, place)))
        for place, ready in zip(places, _numbers(seed, epoch, places, 0), strict=True)
    ]
    size = math.ceil(grid[0] * grid[1] / 8)
    octets = torch.tensor([[*mask.to_bytes(size, "little")] for mask in masks], dtype=torch.uint8)
    bits = (octets.view(len(masks), size, 1) >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.flatten(1)[:, : grid[0] * grid[1]].to(index.device)


def _covered(grid: Grid, num_masked: int, numbers: Iterable[Sequence[int]]) -> int:
    """The patches of one image that rectangles cover, as bits: one attempt for every four ``numbers`` below 2**32."""
    (rows, columns), sides = grid, _sides(grid[0] * grid[1])
    covered, left, refused = 0, num_masked, 0
    for for_area, for_aspect, for_top, for_start in numbers:
        if not left or refused == ATTEMPTS:
            break
        low, high = min(left, SMALLEST_BLOCK), max(left, SMALLEST_BLOCK)
        area = low + (for_area * (high - low + 1) >> 32)
        height, width = sides[min(max(area, 1), len(sides) - 1)][for_aspect * ASPECTS >> 32]
        refused += 1
        if height > rows or width > columns:
            continue
        top, start = for_top * (rows - height + 1) >> 32, for_start * (columns - width + 1) >> 32
        block = _corner(height, width, columns) << (top * columns + start)
        new = (block & ~covered).bit_count()
        if 0 < new <= left:
            covered, left, refused = covered | block, left - new, 0
    return covered


def _numbers(seed: int, epoch: int, places: Tensor, first: int) -> list[list[list[int]]]:
    """(B, AHEAD, 4) below 2**32 for images at ``places`` (B, 1), from attempt ``first`` on."""
    attempts = torch.arange(first, first + AHEAD)[:, None]
    return random_uint32(seed, BLOCK, epoch, places[:, None], attempts, torch.arange(4)).tolist()


def _further(seed: int, epoch: int, place: Tensor) -> Iterator[Sequence[int]]:
    """The numbers of one image (1,) after the first ``AHEAD`` attempts, without end."""
    for first in itertools.count(AHEAD, AHEAD):
        yield from _numbers(seed, epoch, place[None], first)[0]


@lru_cache(maxsize=4096)
def _corner(height: int, width: int, columns: int) -> int:
    """The rectangle at the top left, as bits."""
    return sum(((1 << width) - 1) << (row * columns) for row in range(height))


@lru_cache(maxsize=8)
def _sides(largest: int) -> list[list[tuple[int, int]]]:
    """Height and width by area, up to ``largest``, and by ``ASPECTS`` aspects."""
    logs = torch.linspace(math.log(0.3), -math.log(0.3), ASPECTS, dtype=torch.float64)
    area = torch.arange(1 + largest, dtype=torch.float64)[:, None]
    sides = torch.stack([(area * logs.exp()).sqrt(), (area / logs.exp()).sqrt()], dim=-1)
    return sides.round().long().clamp(min=1).tolist()
