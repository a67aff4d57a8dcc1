"""k-means by Lloyd's iterations (doi:10.1109/TIT.1982.1056489), on any device and any number of processes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mapet.errors import MapetError, nearest
from mapet.hashing import hashed
from mapet.tokenizers.seeding import finite, require_enough

METRICS = ("euclidean", "cosine")
CELLS = 1 << 24  # distances, or vectors' entries, held at once: 64 MiB of float32
SPLIT = 0x5350  # salt


def _same(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class KMeans:
    """The best centroids that were measured.

    Attributes:
        centroids: (k, F) float32; unit vectors where the metric is cosine.
        objective: mean squared distance at each assignment, the start's first; ``centroids`` reach its minimum.
        counts: (k,) int64, vectors nearest to each of ``centroids``, over all processes.
    """

    centroids: Tensor
    objective: list[float]
    counts: Tensor


def kmeans(
    vectors: Tensor,
    start: Tensor,
    *,
    iterations: int = 20,
    metric: str = "euclidean",
    reduce: Callable[[Tensor], Tensor] = _same,
    chunk: int | None = None,
) -> KMeans:
    """Improve ``start`` until no vector changes its cluster, or for ``iterations`` updates; never ends above it.

    Empty clusters are given one half of the clusters that contribute most to the objective. Sums are kept in float64,
    so the chunk size and the number of processes change the result by rounding only. Cosine makes unit vectors of
    everything first (and needs a copy of ``vectors``), then renormalises the centroids after every update.

    Args:
        vectors: (N, F), this process's share.
        start: (k, F), the same on every process.
        iterations: updates at most; one assignment more is made, to measure the last.
        metric: "euclidean" or "cosine".
        reduce: sums a tensor over all processes; every process then gets the same centroids.
        chunk: vectors compared at once; None keeps each temporary within 64 MiB (labels apart).

    Raises:
        MapetError: an unknown metric, fewer vectors than centroids, or values that are not finite.
    """
    _check(vectors, start, metric, reduce)
    unit = normalize if metric == "cosine" else _same
    vectors, centroids = unit(vectors), unit(start.float())
    labels = torch.full((len(vectors),), -1, device=vectors.device)
    best, objective = KMeans(centroids, [], torch.empty(0)), []
    for step in range(iterations + 1):
        before = labels
        labels, table = _tally(vectors, centroids, chunk)
        table = reduce(table)
        sums, counts, spread = table[:, :-2], table[:, -2], table[:, -1]
        objective.append(finite(spread.sum() / counts.sum()))
        if objective[-1] <= min(objective):
            best = KMeans(centroids, objective, counts.long())
        means, split = _update(sums, counts, spread, centroids, step)
        if not split and not reduce((labels != before).sum()):
            break
        centroids = unit(means)
    return best


def assign(vectors: Tensor, centroids: Tensor, chunk: int | None = None) -> tuple[Tensor, Tensor]:
    """The nearest centroid of each vector (N,) int64, and its squared distance (N,) float32, never negative.

    Centroids are ranked by a matrix product, of both sides less the centroids' mean, so that a large common offset
    does not cost digits; the distance to the winner is then computed from the difference itself.

    Args:
        vectors: (N, F).
        centroids: (k, F) float32.
        chunk: vectors compared at once; None keeps each temporary within 64 MiB (labels apart).
    """
    shift = centroids.mean(dim=0)
    centred = centroids - shift
    bias = centred.square().sum(dim=1) / 2
    labels = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
    squared = torch.empty(len(vectors), device=vectors.device)
    for rows in _chunks(len(vectors), chunk or max(1, CELLS // max(centroids.shape))):
        moved = vectors[rows].float() - shift
        labels[rows] = torch.addmm(bias, moved, centred.T, alpha=-1).argmin(dim=1)
        squared[rows] = (moved - centred[labels[rows]]).square().sum(dim=1)
    return labels, squared


def _tally(vectors: Tensor, centroids: Tensor, chunk: int | None) -> tuple[Tensor, Tensor]:
    """Labels (N,), and per cluster (k, F + 2) float64: the sum of its vectors, their number, their spread."""
    k, width = centroids.shape
    labels, squared = assign(vectors, centroids, chunk)
    table = torch.zeros(k, width + 2, dtype=torch.float64, device=vectors.device)
    for rows in _chunks(len(vectors), max(1, CELLS // (2 * width))):
        table[:, :width].index_add_(0, labels[rows], vectors[rows].double())
    table[:, width] = torch.bincount(labels, minlength=k)
    table[:, width + 1].index_add_(0, labels, squared.double())
    return labels, table


def _update(sums: Tensor, counts: Tensor, spread: Tensor, centroids: Tensor, step: int) -> tuple[Tensor, bool]:
    """The next centroids (k, F) float32, and whether an empty cluster was given half of another.

    Each empty cluster takes the mean of one of the clusters with the largest spread (summed squared distance), moved
    an eighth of its root mean square deviation along a hashed diagonal; the donor moves the other way.
    """
    means = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp_min(1), centroids.double())
    empty = (counts == 0).nonzero().flatten()
    donors = spread.argsort(descending=True, stable=True)[: len(empty)]
    donors = donors[spread[donors] > 0]
    empty = empty[: len(donors)]
    axes = torch.arange(means.shape[1], device=means.device)
    sign = (hashed(SPLIT, step, empty[:, None], axes) & 1) * 2 - 1
    offset = sign * (spread[donors] / counts[donors] / means.shape[1]).sqrt()[:, None] / 8
    means[empty] = means[donors] + offset
    means[donors] -= offset
    return means.float(), len(donors) > 0


def _chunks(length: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, length, size)]


def _check(vectors: Tensor, start: Tensor, metric: str, reduce: Callable[[Tensor], Tensor]) -> None:
    if metric not in METRICS:
        raise MapetError(f'There is no metric "{metric}".{nearest(metric, METRICS)}')
    require_enough(int(reduce(torch.tensor(len(vectors), device=vectors.device))), len(start))
