"""Where k-means starts from: k-means++ or a plain sample, both pure functions of a seed."""

import torch
from torch import Tensor

from mapet.errors import MapetError
from mapet.hashing import fraction, hashed

BLOCK = 1024  # candidates compared with all vectors in one pass
CELLS = 1 << 24  # distances held at once: 64 MiB of float32
PLAIN, DRAW, ACCEPT = 0x504C, 0x4452, 0x4143  # salts


def sampled(vectors: Tensor, k: int, seed: int) -> Tensor:
    """``k`` different rows of ``vectors`` (N, F), uniformly: (k, F).

    Raises:
        MapetError: fewer vectors than ``k``.
    """
    require_enough(len(vectors), k)
    keys = hashed(seed, PLAIN, torch.arange(len(vectors), device=vectors.device))
    return vectors[keys.argsort(stable=True)[:k]].float()


def plus_plus(vectors: Tensor, k: int, seed: int) -> Tensor:
    """k-means++ (Arthur & Vassilvitskii 2007): each row is drawn in proportion to its squared distance so far.

    The draws are exact, yet taken in blocks by rejection (Cohen-Addad et al. 2020, arXiv 2012.11891): candidates come
    from the distances before the block, and each is kept with the share of its distance that the block has left.
    A block is as long as the list of what was chosen, up to 1024, so all N vectors are passed over about
    log2(k) + k / 1024 times, somewhat more as candidates are refused, and not k times; the arithmetic is 2 N k F.
    Where fewer than ``k`` rows differ, the rest are copies.

    Args:
        vectors: (N, F) float32.
        k: rows wanted.
        seed: the same seed gives the same rows.

    Returns:
        (k, F) float32.

    Raises:
        MapetError: fewer vectors than ``k``, or values that are not finite.
    """
    require_enough(len(vectors), k)
    chosen = hashed(seed, PLAIN, torch.arange(len(vectors), device=vectors.device)).argmin()[None]
    shift = vectors.mean(dim=0)
    squared = torch.full((len(vectors),), torch.inf, device=vectors.device)
    _approach(squared, vectors, vectors[chosen], shift)
    turn = 0
    while len(chosen) < k and finite(squared.sum(dtype=torch.float64)) > 0:
        turn += 1
        candidates = _draw(squared, min(len(chosen), BLOCK), seed, turn)
        accepted = _accepted(vectors[candidates], squared[candidates], seed, turn)
        kept = candidates[accepted][: k - len(chosen)]
        _approach(squared, vectors, vectors[kept], shift)
        chosen = torch.cat([chosen, kept])
    spare = sampled(vectors, k, seed)[: k - len(chosen)]
    return torch.cat([vectors[chosen].float(), spare])


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


def _draw(weights: Tensor, count: int, seed: int, turn: int) -> Tensor:
    """``count`` indices, each in proportion to its weight: (count,) int64."""
    stairs = weights.cumsum(0, dtype=torch.float64)
    points = fraction(seed, DRAW, turn, torch.arange(count, device=weights.device)) * stairs[-1]
    return torch.searchsorted(stairs, points, right=True).clamp_max(len(weights) - 1)


def _accepted(rows: Tensor, before: Tensor, seed: int, turn: int) -> list[int]:
    """Which candidates stay: kept with probability (squared distance now) / (squared distance before the block)."""
    rows = rows.float()
    between = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square().cpu()
    left = before.cpu().clone()
    limit = fraction(seed, ACCEPT, turn, torch.arange(len(left))) * left
    kept = []
    for place in range(len(left)):
        if left[place] > limit[place]:
            kept.append(place)
            torch.minimum(left, between[place], out=left)
    return kept


def _approach(squared: Tensor, vectors: Tensor, rows: Tensor, shift: Tensor) -> None:
    """Lower ``squared`` (N,) in place to the squared distance to the nearest of the new ``rows`` (m, F)."""
    rows = rows.float() - shift
    size = max(1, CELLS // max(len(rows), rows.shape[1], 1))
    for start in range(0, len(vectors) if len(rows) else 0, size):
        part = slice(start, start + size)
        moved = vectors[part].float() - shift
        label = torch.addmm(rows.square().sum(dim=1) / 2, moved, rows.T, alpha=-1).argmin(dim=1)
        squared[part] = squared[part].minimum((moved - rows[label]).square().sum(dim=1))
