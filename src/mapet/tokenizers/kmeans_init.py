"""Initial centroids of k-means: k-means++ or a uniform sample, both pure functions of a seed."""

import torch
from torch import Tensor

from mapet.tokenizers.assign import Nearest
from mapet.tokenizers.vector_pool import VectorPool
from mapet.utils.errors import MapetError
from mapet.utils.rng import random_bits, uniform

BLOCK = 1024  # candidates compared with all vectors in one pass
PLAIN, DRAW, ACCEPT = 0x504C, 0x4452, 0x4143  # salts


def sampled(vectors: Tensor | VectorPool, k: int, seed: int) -> Tensor:
    """A uniform sample of ``k`` different rows of ``vectors`` (N, F): (k, F) float32.

    Raises:
        MapetError: fewer vectors than ``k``.
    """
    pool = VectorPool(vectors) if isinstance(vectors, Tensor) else vectors
    require_enough(pool.total, k)
    return pool.take(_shuffled(pool, seed)[:k])


def plus_plus(vectors: Tensor | VectorPool, k: int, seed: int) -> Tensor:
    """k-means++ (Arthur & Vassilvitskii 2007): draw each row in proportion to its squared distance from those before.

    The draws are exact but made in blocks by rejection sampling (Cohen-Addad et al. 2020, arXiv 2012.11891): candidates
    are drawn by the distances before the block, and accepted with the share of the distance that remains. A block is as
    long as the list of accepted rows, up to 1024, so about log2(k) + k / 1024 passes over all N vectors suffice, not k
    (a few more for rejected candidates); the arithmetic is 2 N k F. If fewer than ``k`` rows differ, the rest are
    copies. Each process compares its vectors and draws from all distances, so all draw the same rows as a single one.

    Args:
        vectors: (N, F), or the vectors of all processes.
        k: number of rows.
        seed: random seed.

    Returns:
        (k, F) float32.

    Raises:
        MapetError: fewer vectors than ``k``, or NaN or Inf.
    """
    pool = VectorPool(vectors) if isinstance(vectors, Tensor) else vectors
    require_enough(pool.total, k)
    chosen = _shuffled(pool, seed)[:1]
    own = torch.full((len(pool.vectors),), torch.inf, device=pool.device)
    squared, turn = _approached(own, pool, pool.take(chosen)), 0
    while len(chosen) < k and finite(squared.sum(dtype=torch.float64)) > 0:
        turn += 1
        candidates = _draw(squared, min(len(chosen), BLOCK), seed, turn)
        rows = pool.take(candidates)
        kept = _accepted(rows, squared[candidates], seed, turn)[: k - len(chosen)]
        squared = _approached(own, pool, rows[kept])
        chosen = torch.cat([chosen, candidates[kept]])
    spare = _shuffled(pool, seed)[: k - len(chosen)]
    return pool.take(torch.cat([chosen, spare]))


def require_enough(count: int, k: int) -> None:
    """Require at least ``k`` vectors for ``k`` centroids.

    Raises:
        MapetError: there are fewer.
    """
    if count < k:
        raise MapetError(f"{k} centroids need at least {k} vectors, got {count}: use fewer codes or more data.")


def finite(total: Tensor) -> float:
    """A scalar tensor as a float.

    Raises:
        MapetError: it is NaN or Inf.
    """
    if not total.isfinite():
        raise MapetError("The vectors hold NaN or Inf: check the teacher's features.")
    return float(total)


def _shuffled(pool: VectorPool, seed: int) -> Tensor:
    """The indices of all vectors in random order."""
    return random_bits(seed, PLAIN, torch.arange(pool.total, device=pool.device)).argsort(stable=True)


def _draw(weights: Tensor, count: int, seed: int, turn: int) -> Tensor:
    """``count`` indices, each in proportion to its weight: (count,) int64."""
    stairs = weights.cumsum(0, dtype=torch.float64)
    points = uniform(seed, DRAW, turn, torch.arange(count, device=weights.device)) * stairs[-1]
    return torch.searchsorted(stairs, points, right=True).clamp_max(len(weights) - 1)


def _accepted(rows: Tensor, before: Tensor, seed: int, turn: int) -> list[int]:
    """The accepted candidates; the probability is (squared distance now) / (squared distance before the block)."""
    between = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square().cpu()
    left = before.cpu().clone()
    limit = uniform(seed, ACCEPT, turn, torch.arange(len(left))) * left
    kept = []
    for row in range(len(left)):
        if left[row] > limit[row]:
            kept.append(row)
            torch.minimum(left, between[row], out=left)
    return kept


def _approached(own: Tensor, pool: VectorPool, rows: Tensor) -> Tensor:
    """Update ``own`` (n,), this process's squared distances, by new ``rows`` (m, F); returns those of all processes."""
    if len(rows):
        nearest_row = Nearest(rows)
        for part, vectors in zip(pool.slices, pool, strict=True):
            own[part] = own[part].minimum(nearest_row(vectors)[1])
    return pool.all_gather(own)
