"""k-means by Lloyd's iterations (doi:10.1109/TIT.1982.1056489), on any device and with any number of processes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mapet.tokenizers.assign import CELLS, Nearest, assign, slices
from mapet.tokenizers.kmeans_init import finite, require_enough
from mapet.tokenizers.vector_pool import VectorPool
from mapet.utils.errors import MapetError, nearest
from mapet.utils.rng import random_bits

__all__ = ["METRICS", "KMeans", "assign", "kmeans", "unit"]

METRICS = ("euclidean", "cosine")
SPLIT = 0x5350  # salt


@dataclass(frozen=True)
class KMeans:
    """Result of k-means.

    Attributes:
        centroids: (k, F) float32; unit vectors if the metric is cosine.
        objective: mean squared distance at each assignment, from the initial one on; its minimum is that of
            ``centroids``.
        counts: (k,) int64, vectors assigned to each of ``centroids``, over all processes.
    """

    centroids: Tensor
    objective: list[float]
    counts: Tensor


def kmeans(
    vectors: Tensor | Iterable[Tensor],
    start: Tensor,
    *,
    iterations: int = 20,
    metric: str = "euclidean",
    reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    chunk: int | None = None,
    precision: str = "float32",
) -> KMeans:
    """Run Lloyd's iterations from ``start`` until no centroid moves, and return the best centroids.

    An empty cluster gets one half of a cluster that contributes most to the objective. Sums are float64, so chunk size
    and number of processes change the result by rounding only. The metric "cosine" normalises the vectors, and the
    centroids after every update.

    Args:
        vectors: this process's share: (N, F), or an iterable of chunks (n, F) that can be iterated repeatedly.
        start: initial centroids (k, F), the same on every process.
        iterations: maximum number of updates; one more assignment measures the last.
        metric: "euclidean" or "cosine".
        reduce: sums a tensor over all processes; every process gets the same centroids.
        chunk: vectors of a tensor per chunk; None for temporaries of at most 64 MiB.
        precision: precision of the distances' products, as in ``assign``.

    Raises:
        MapetError: an unknown metric, fewer vectors than centroids, or NaN or Inf.
    """
    prepare = unit(metric)
    chunks = VectorPool(vectors, chunk=chunk) if isinstance(vectors, Tensor) else vectors
    centroids = prepare(start.float())
    best, objective = KMeans(centroids, [], torch.empty(0)), []
    for step in range(iterations + 1):
        sums, totals = map(reduce, _statistics(map(prepare, chunks), centroids, precision))
        counts, spread = totals[:, 0], totals[:, 1]
        require_enough(int(counts.sum()), len(centroids))
        objective.append(finite(spread.sum() / counts.sum()))
        if objective[-1] <= min(objective):
            best = KMeans(centroids, objective, counts.long())
        before, centroids = centroids, prepare(_update(sums, counts, spread, centroids, step))
        if torch.equal(centroids, before):
            break
    return best


def unit(metric: str) -> Callable[[Tensor], Tensor]:
    """How the metric transforms vectors (n, F) before they are compared by Euclidean distance.

    Raises:
        MapetError: an unknown metric.
    """
    if metric not in METRICS:
        raise MapetError(f'There is no metric "{metric}".{nearest(metric, METRICS)}')
    return normalize if metric == "cosine" else lambda vectors: vectors


def _statistics(chunks: Iterable[Tensor], centroids: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """Per cluster: sum of its vectors (k, F) float64; their count and summed squared distance (k, 2) float64."""
    k, width = centroids.shape
    sums = torch.zeros(k, width, dtype=torch.float64, device=centroids.device)
    totals = torch.zeros(k, 2, dtype=torch.float64, device=centroids.device)
    nearest_centroid = Nearest(centroids, precision=precision)
    for vectors in chunks:
        labels, squared = nearest_centroid(vectors)
        for rows in slices(len(vectors), max(1, CELLS["cpu"] // (16 * width))):
            sums.scatter_add_(0, labels[rows, None].expand(-1, width), vectors[rows].double())
        totals[:, 0] += torch.bincount(labels, minlength=k)
        totals[:, 1].index_add_(0, labels, squared.double())
    return sums, totals


def _update(sums: Tensor, counts: Tensor, spread: Tensor, centroids: Tensor, step: int) -> Tensor:
    """The next centroids (k, F) float32; changes ``sums``.

    Each empty cluster takes the mean of one of the clusters with the largest spread (summed squared distance), shifted
    by an eighth of its root mean square deviation along a random diagonal; the donor is shifted the other way.
    """
    means = sums.div_(counts[:, None].clamp_min(1))
    empty = (counts == 0).nonzero().flatten()
    means[empty] = centroids[empty].double()
    donors = spread.argsort(descending=True, stable=True)[: len(empty)]
    donors = donors[spread[donors] > 0]
    empty = empty[: len(donors)]
    axes = torch.arange(means.shape[1], device=means.device)
    sign = (random_bits(SPLIT, step, empty[:, None], axes) & 1) * 2 - 1
    offset = sign * (spread[donors] / counts[donors] / means.shape[1]).sqrt()[:, None] / 8
    means[empty] = means[donors] + offset
    means[donors] -= offset
    return means.float()
