"""k-means by Lloyd's iterations (doi:10.1109/TIT.1982.1056489), on any device and any number of processes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mapet.tokenizers.assign import CELLS, Nearest, assign, slices
from mapet.tokenizers.kmeans_init import finite, require_enough
from mapet.tokenizers.vector_pool import Pool
from mapet.utils.errors import MapetError, nearest
from mapet.utils.rng import random_bits

__all__ = ["METRICS", "KMeans", "assign", "kmeans", "unit"]

METRICS = ("euclidean", "cosine")
SPLIT = 0x5350  # salt


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
    vectors: Tensor | Iterable[Tensor],
    start: Tensor,
    *,
    iterations: int = 20,
    metric: str = "euclidean",
    reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    chunk: int | None = None,
    precision: str = "float32",
) -> KMeans:
    """Improve ``start`` until no centroid moves, or for ``iterations`` updates; never ends above it.

    Empty clusters are given one half of the clusters that contribute most to the objective. Sums are kept in float64,
    so the chunk size and the number of processes change the result by rounding only. Cosine makes unit vectors of
    everything it compares, and of the centroids after every update.

    Args:
        vectors: this process's share: (N, F), or chunks of (n, F) that can be gone through again and again, held
            somewhere or computed anew each time.
        start: (k, F), the same on every process.
        iterations: updates at most; one assignment more is made, to measure the last.
        metric: "euclidean" or "cosine".
        reduce: sums a tensor over all processes; every process then gets the same centroids.
        chunk: vectors of a tensor handled at once; None keeps each temporary within 64 MiB.
        precision: of the distances' products, as in ``assign``.

    Raises:
        MapetError: an unknown metric, fewer vectors than centroids, or values that are not finite.
    """
    change = unit(metric)
    chunks = Pool(vectors, chunk=chunk) if isinstance(vectors, Tensor) else vectors
    centroids = change(start.float())
    best, objective = KMeans(centroids, [], torch.empty(0)), []
    for step in range(iterations + 1):
        sums, tallies = map(reduce, _tally(map(change, chunks), centroids, precision))
        counts, spread = tallies[:, 0], tallies[:, 1]
        require_enough(int(counts.sum()), len(centroids))
        objective.append(finite(spread.sum() / counts.sum()))
        if objective[-1] <= min(objective):
            best = KMeans(centroids, objective, counts.long())
        before, centroids = centroids, change(_update(sums, counts, spread, centroids, step))
        if torch.equal(centroids, before):
            break
    return best


def unit(metric: str) -> Callable[[Tensor], Tensor]:
    """What the metric makes of vectors (n, F) before they are compared by Euclidean distance.

    Raises:
        MapetError: an unknown metric.
    """
    if metric not in METRICS:
        raise MapetError(f'There is no metric "{metric}".{nearest(metric, METRICS)}')
    return normalize if metric == "cosine" else lambda vectors: vectors


def _tally(chunks: Iterable[Tensor], centroids: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """Per cluster the sum of its vectors (k, F) float64; and their number and their spread (k, 2) float64."""
    k, width = centroids.shape
    sums = torch.zeros(k, width, dtype=torch.float64, device=centroids.device)
    tallies = torch.zeros(k, 2, dtype=torch.float64, device=centroids.device)
    near = Nearest(centroids, precision=precision)
    for vectors in chunks:
        labels, squared = near(vectors)
        for rows in slices(len(vectors), max(1, CELLS["cpu"] // (16 * width))):
            sums.scatter_add_(0, labels[rows, None].expand(-1, width), vectors[rows].double())
        tallies[:, 0] += torch.bincount(labels, minlength=k)
        tallies[:, 1].index_add_(0, labels, squared.double())
    return sums, tallies


def _update(sums: Tensor, counts: Tensor, spread: Tensor, centroids: Tensor, step: int) -> Tensor:
    """The next centroids (k, F) float32; ``sums`` are used up.

    Each empty cluster takes the mean of one of the clusters with the largest spread (summed squared distance), moved
    an eighth of its root mean square deviation along a hashed diagonal; the donor moves the other way.
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
