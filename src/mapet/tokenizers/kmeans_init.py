"""Where k-means starts from: k-means++ or a plain sample, both pure functions of a seed."""

import torch
from torch import Tensor

from mapet.tokenizers.assign import Nearest
from mapet.tokenizers.vector_pool import Pool
from mapet.utils.errors import MapetError
from mapet.utils.rng import random_bits, uniform

BLOCK = 1024  # candidates compared with all vectors in one pass
PLAIN, DRAW, ACCEPT = 0x504C, 0x4452, 0x4143  # salts


def sampled(vectors: Tensor | Pool, k: int, seed: int) -> Tensor:
    """``k`` different rows of ``vectors`` (N, F), uniformly: (k, F) float32.

    Raises:
        MapetError: fewer vectors than ``k``.
    """
    pool = Pool(vectors) if isinstance(vectors, Tensor) else vectors
    require_enough(pool.total, k)
    return pool.take(_shuffled(pool, seed)[:k])


def plus_plus(vectors: Tensor | Pool, k: int, seed: int) -> Tensor:
    """k-means++ (Arthur & Vassilvitskii 2007): each row is drawn in proportion to its squared distance so far.

    The draws are exact, yet taken in blocks by rejection (Cohen-Addad et al. 2020, arXiv 2012.11891): candidates come
    from the distances before the block, and each is kept with the share of its distance that the block has left.
    A block is as long as the list of what was chosen, up to 1024, so all N vectors are passed over about
    log2(k) + k / 1024 times, somewhat more as candidates are refused, and not k times; the arithmetic is 2 N k F.
    Where fewer than ``k`` rows differ, the rest are copies. Several processes compare each its own vectors and draw
    from all distances, so all of them draw what one alone would.

    Args:
        vectors: (N, F), or what the processes hold together.
        k: rows wanted.
        seed: the same seed gives the same rows.

    Returns:
        (k, F) float32.

    Raises:
        MapetError: fewer vectors than ``k``, or values that are not finite.
    """
    pool = Pool(vectors) if isinstance(vectors, Tensor) else vectors
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
    """Refuse to look for ``k`` centroids among fewer than ``k`` vectors, with a MapetError."""
    if count < k:
        raise MapetError(
            f"{k} centroids need at least {k} vectors, and there are {count}: use fewer codes or more data."
        )


def finite(total: Tensor) -> float:
    """A scalar as a number; a MapetError where it is infinite or not a number."""
    if not total.isfinite():
        raise MapetError("The vectors to be clustered are not all finite numbers: look at the teacher's features.")
    return float(total)


def _shuffled(pool: Pool, seed: int) -> Tensor:
    """The numbers of all vectors, in an order of chance."""
    return random_bits(seed, PLAIN, torch.arange(pool.total, device=pool.device)).argsort(stable=True)


def _draw(weights: Tensor, count: int, seed: int, turn: int) -> Tensor:
    """``count`` indices, each in proportion to its weight: (count,) int64."""
    stairs = weights.cumsum(0, dtype=torch.float64)
    points = uniform(seed, DRAW, turn, torch.arange(count, device=weights.device)) * stairs[-1]
    return torch.searchsorted(stairs, points, right=True).clamp_max(len(weights) - 1)


def _accepted(rows: Tensor, before: Tensor, seed: int, turn: int) -> list[int]:
    """Which candidates stay: kept with probability (squared distance now) / (squared distance before the block)."""
    between = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square().cpu()
    left = before.cpu().clone()
    limit = uniform(seed, ACCEPT, turn, torch.arange(len(left))) * left
    kept = []
    for place in range(len(left)):
        if left[place] > limit[place]:
            kept.append(place)
            torch.minimum(left, between[place], out=left)
    return kept


def _approached(own: Tensor, pool: Pool, rows: Tensor) -> Tensor:
    """Lower ``own`` (n,) in place to the squared distance to the nearest of the new ``rows`` (m, F); that of all."""
    if len(rows):
        near = Nearest(rows)
        for part, vectors in zip(pool.slices, pool, strict=True):
            own[part] = own[part].minimum(near(vectors)[1])
    return pool.spread(own)
