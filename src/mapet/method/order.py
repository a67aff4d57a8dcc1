"""Orders: the sequence in which the positions of an image are given and revealed.

An order is an int64 tensor (B, 1 + L) of positions, CLS first; position 0 is CLS, position p + 1 is patch p. Slices of
it replace boolean masks, ``ids_restore`` and index pairs: its first entries are the context, its last ones are masked.

Each strategy is a distribution over orders with one signature, ``strategy(grid, num_masked, seed, epoch, index)``. It
is a pure function of its arguments, row by row: bit-identical on CPU and GPU and under any split of the batch.

Legend: B images, L patches, D width, A attempts at a rectangle.
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
MIN_BLOCK = 16  # patches per rectangle, BEiT's default
MAX_ATTEMPTS = 10  # BEiT stops after so many rejected rectangles in a row
ATTEMPTS_AT_ONCE = 32  # drawn for all images together; few images need more
UNIFORM, RECTANGLE = 1, 2  # salts of independent random streams


def uniform(grid: Grid, num_masked: int, seed: int, epoch: int, index: Tensor) -> Tensor:
    """Draw a uniformly random permutation of the patches (the paper's choice).

    Args:
        grid: rows and columns of patches.
        num_masked: number of patches to predict; does not influence this strategy.
        seed: seed of the run.
        epoch: current epoch.
        index: (B,) int64, each image's index in its dataset.

    Returns:
        (B, 1 + L) int64 on the device of ``index``.
    """
    return _with_cls(_bits(grid, seed, epoch, index).argsort(dim=1, stable=True))


def raster(grid: Grid, num_masked: int, seed: int, epoch: int, index: Tensor) -> Tensor:
    """Return the patches row by row from the top left, the same for every image; arguments as in ``uniform``."""
    patches = torch.arange(grid[0] * grid[1], device=index.device)
    return _with_cls(patches.expand(len(index), -1))


def blockwise(grid: Grid, num_masked: int, seed: int, epoch: int, index: Tensor) -> Tensor:
    """Mask rectangles, as BEiT does (Bao et al., arXiv 2106.08254, algorithm 1); arguments as in ``uniform``.

    Rectangles of at least 16 patches and log-uniform aspect ratio, less high and less wide than the grid, are masked
    while they fit into ``num_masked``; single patches fill the rest, so exactly ``num_masked`` patches come last, in a
    uniformly random sequence. Rectangles are found on the CPU: with ``index`` on a GPU, the call synchronises.
    """
    is_covered = _rectangles(grid, num_masked, seed, epoch, index)
    shuffled = _bits(grid, seed, epoch, index).argsort(dim=1, stable=True)
    covered_last = is_covered.gather(1, shuffled).argsort(dim=1, stable=True)
    patches = shuffled.gather(1, covered_last)
    context = patches.shape[1] - num_masked
    masked = _reshuffled(patches[:, context:], seed, epoch, index)
    return _with_cls(torch.cat([patches[:, :context], masked], dim=1))


STRATEGIES: dict[str, Strategy] = {"uniform": uniform, "blockwise": blockwise, "raster": raster}


def gather_rows(rows: Tensor, positions: Tensor) -> Tensor:
    """Select rows by position: (B, 1 + L, D) and (B, K), a slice of an order → (B, K, D)."""
    return rows.gather(1, positions[:, :, None].expand(-1, -1, rows.shape[-1]))


def _bits(grid: Grid, seed: int, epoch: int, index: Tensor) -> Tensor:
    """(B, L) int64 random bits."""
    patches = torch.arange(grid[0] * grid[1], device=index.device)
    return random_bits(seed, UNIFORM, epoch, index[:, None], patches)


def _reshuffled(patches: Tensor, seed: int, epoch: int, index: Tensor) -> Tensor:
    """Permute each row of (B, M) patches, independently of ``_bits`` (whose keys are ≥ 0, these are < 0)."""
    bits = random_bits(seed, UNIFORM, epoch, index[:, None], ~patches)
    return patches.gather(1, bits.argsort(dim=1, stable=True))


def _with_cls(patches: Tensor) -> Tensor:
    """(B, L) patches → (B, 1 + L) positions."""
    return torch.cat([patches.new_zeros(len(patches), 1), patches + 1], dim=1)


def _rectangles(grid: Grid, num_masked: int, seed: int, epoch: int, index: Tensor) -> Tensor:
    """(B, L) uint8: 1 where one of BEiT's rectangles covers the patch, for at most ``num_masked`` patches per image.

    Each image is one Python integer with a bit per patch: batched tensors take five times as long.
    """
    index_B1 = index.cpu()[:, None]
    first_draws = _attempts(seed, epoch, index_B1, 0)
    covered = [
        _covered(grid, num_masked, itertools.chain(draws, _later_attempts(seed, epoch, image)))
        for image, draws in zip(index_B1, first_draws, strict=True)
    ]
    size = math.ceil(grid[0] * grid[1] / 8)
    octets = torch.tensor([[*bits.to_bytes(size, "little")] for bits in covered], dtype=torch.uint8)
    bits = (octets.view(len(covered), size, 1) >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.flatten(1)[:, : grid[0] * grid[1]].to(index.device)


def _covered(grid: Grid, num_masked: int, attempts: Iterable[Sequence[int]]) -> int:
    """Return the patches of one image covered by rectangles, as bits; an attempt is four integers below 2**32."""
    (rows, columns), sides = grid, _sides(grid[0] * grid[1])
    covered, left, rejected = 0, num_masked, 0
    for for_area, for_aspect, for_top, for_start in attempts:
        if not left or rejected == MAX_ATTEMPTS:
            break
        low, high = min(left, MIN_BLOCK), max(left, MIN_BLOCK)
        area = low + (for_area * (high - low + 1) >> 32)
        height, width = sides[min(area, len(sides) - 1)][for_aspect * ASPECTS >> 32]
        rejected += 1
        if height >= rows or width >= columns:  # as in BEiT's code: no bar across the whole grid
            continue
        top, start = for_top * (rows - height + 1) >> 32, for_start * (columns - width + 1) >> 32
        block = _top_left(height, width, columns) << (top * columns + start)
        num_new = (block & ~covered).bit_count()
        if 0 < num_new <= left:
            covered, left, rejected = covered | block, left - num_new, 0
    return covered


def _attempts(seed: int, epoch: int, index_B1: Tensor, first: int) -> list[list[list[int]]]:
    """(B, A, 4) integers below 2**32: the next ``ATTEMPTS_AT_ONCE`` attempts from attempt ``first`` on."""
    attempt = torch.arange(first, first + ATTEMPTS_AT_ONCE)[:, None]
    return random_uint32(seed, RECTANGLE, epoch, index_B1[:, None], attempt, torch.arange(4)).tolist()


def _later_attempts(seed: int, epoch: int, index_1: Tensor) -> Iterator[Sequence[int]]:
    """Yield the attempts of one image after the first ``ATTEMPTS_AT_ONCE``, without end."""
    for first in itertools.count(ATTEMPTS_AT_ONCE, ATTEMPTS_AT_ONCE):
        yield from _attempts(seed, epoch, index_1[None], first)[0]


@lru_cache(maxsize=4096)
def _top_left(height: int, width: int, columns: int) -> int:
    """Return the rectangle in the top left corner, as bits."""
    return sum(((1 << width) - 1) << (row * columns) for row in range(height))


@lru_cache(maxsize=8)
def _sides(max_area: int) -> list[list[tuple[int, int]]]:
    """Return (height, width) by area, 0 … ``max_area``, and by aspect ratio."""
    logs = torch.linspace(math.log(0.3), -math.log(0.3), ASPECTS, dtype=torch.float64)
    area = torch.arange(1 + max_area, dtype=torch.float64)[:, None]
    sides = torch.stack([(area * logs.exp()).sqrt(), (area / logs.exp()).sqrt()], dim=-1)
    return sides.round().long().clamp(min=1).tolist()
