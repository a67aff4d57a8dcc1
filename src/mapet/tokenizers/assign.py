"""Nearest centroids by one matrix product; distances are computed from the differences."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mapet.utils.errors import MapetError, nearest
from mapet.utils.processor import has_fast_mkl, multiplies_bfloat16
from mapet.utils.rng import exact

PRECISIONS = ("float32", "tf32", "bfloat16")
CELLS = {"cpu": 1 << 24, "cuda": 1 << 28}  # distances in memory at once: 64 MiB of float32, or 1 GiB on a GPU
FAR = 32  # times the median distance from the mean: a centroid farther out must not move the origin
TIES = 1e-3  # relative error of a squared distance from which on float32 scores are compared again in float64
ROUNDOFF = {"tf32": 2.0**-11, "bfloat16": 2.0**-9}  # largest relative error of a rounded number
PARTS, TILE = 3, 32  # numbers of bfloat16 that add up to one of float32; channels in a tile of AMX
DEVIATIONS = 6  # of the error of a low-precision score: scores that differ by less are compared again in float64


def assign(
    vectors: Tensor, centroids: Tensor, chunk: int | None = None, precision: str = "float32"
) -> tuple[Tensor, Tensor]:
    """Assign each vector to its nearest centroid.

    Args:
        vectors: (N, F).
        centroids: (k, F) float32.
        chunk: vectors compared at once, by all threads together; None: 64 MiB of temporaries at most, on a GPU 1 GiB.
        precision: precision of the product's factors: "float32", "tf32" (on CUDA) or "bfloat16"; a CPU without
            instructions for bfloat16 computes in float32.

    Returns:
        Labels (N,) int64, and squared distances (N,) float32, which are never negative.

    Raises:
        MapetError: an unknown precision.
    """
    return Nearest(centroids, chunk, precision)(vectors)


class Nearest:
    """``assign`` for many sets of vectors and the same centroids.

    Centroids are ranked by a matrix product after both sides are centred by the centroids' mean, or by their median if
    some centroid is far out, so that neither a large common offset nor an outlier costs precision. Where vectors are
    much farther from that origin than from their centroid, those that float32 cannot tell apart are compared in
    float64, and so are all that a product in less than float32 cannot tell apart. Products accumulate in float32.

    A CPU returns a product of bfloat16 in bfloat16. There both halved squared norms are channels of the product, which
    so gives minus half of the squared distance: rounding it costs least where a centroid is near.
    """

    def __init__(self, centroids: Tensor, chunk: int | None = None, precision: str = "float32") -> None:
        if precision not in PRECISIONS:
            raise MapetError(f'There is no precision "{precision}".{nearest(precision, PRECISIONS)}')
        on_cpu = centroids.device.type == "cpu"
        self.precision = "float32" if precision == "bfloat16" and on_cpu and not multiplies_bfloat16() else precision
        self.centroids, self.origin = centroids, centroids.mean(dim=0)
        self.centred = centroids - self.origin
        self.bias = self.centred.square().sum(dim=1) / 2
        if self.bias.max() > FAR**2 * self.bias.median():
            self.origin = centroids.median(dim=0).values
            self.centred = centroids - self.origin
            self.bias = self.centred.square().sum(dim=1) / 2
        self.largest = self.centred.square().amax(dim=0)
        self.factor = self.centred
        self.fused = self.precision == "float32"  # the bias is one more channel of the product
        self.halved = self.precision == "bfloat16" and on_cpu  # scores are -distance² / 2, in bfloat16
        if self.fused:
            self.factor = torch.cat([self.centred, -self.bias[:, None]], dim=1)
        elif self.halved:
            self.factor = _rounded(self.centred, _parts(-self.bias), self.bias.new_ones(len(self.bias), PARTS))
        elif self.precision == "bfloat16" and centroids.is_cuda:
            self.factor = self.centred.bfloat16()
        cells = CELLS.get(centroids.device.type, CELLS["cpu"])
        if self.halved:
            cells //= 4  # its product is so fast that the other passes over the scores count: they stay in the cache
        self.chunk = chunk or max(1, cells // max(centroids.shape))
        self._buffers: list[tuple[Tensor, Tensor]] = []

    def __call__(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Labels (N,) int64 and squared distances (N,) float32 of vectors (N, F)."""
        labels = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
        squared = torch.empty(len(vectors), device=vectors.device)

        vectors, inference = vectors.detach(), torch.is_inference_mode_enabled()

        def compare(rows: slice) -> None:
            with torch.inference_mode(inference), torch.no_grad():  # a thread does not inherit these modes
                labels[rows], squared[rows] = self._assign(vectors[rows])

        threads = torch.get_num_threads() if vectors.device.type == "cpu" else 1
        size = max(1, self.chunk // threads)
        self._allocate(threads, min(len(vectors), size))
        with _matmul_precision(self.precision), _parallel_map(threads) as run:
            for _ in run(compare, slices(len(vectors), size)):
                pass
        return labels, squared

    def _allocate(self, count: int, rows: int) -> None:
        """Two buffers per thread, reused for all chunks: fresh memory costs as much time as filling it."""
        if len(self._buffers) < count or len(self._buffers[0][0]) < rows:
            k, width = self.centred.shape
            scores = torch.bfloat16 if self.halved else torch.float32
            with torch.inference_mode(False):  # so that any mode can write to them later
                self._buffers = [
                    (self.centred.new_ones(rows, width + self.fused), self.centred.new_empty(rows, k, dtype=scores))
                    for _ in range(count)
                ]

    def _assign(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Labels and squared distances of one chunk."""
        buffers = self._buffers.pop()
        try:
            factors, scores = (buffer[: len(vectors)] for buffer in buffers)
            centred = torch.sub(vectors, self.origin, out=factors[:, : len(self.origin)])
            scores = self._product(factors, scores)
            if not self.fused and not self.halved:
                scores.sub_(self.bias)
            labels = _argmax(scores)
            squared = self._squared(centred, labels)
            rows, error = self._near_ties(centred, scores, labels, squared)
            return self._compared_again(vectors, scores, labels, squared, rows, error[rows])
        finally:
            self._buffers.append(buffers)

    def _product(self, centred: Tensor, out: Tensor) -> Tensor:
        """centred · factorᵀ: (n, k) float32; minus half of the squared distances in bfloat16 if they are ``halved``."""
        factor = self.factor
        if self.halved:
            norms = _parts(centred.square().sum(dim=1) / -2)
            return torch.mm(_rounded(centred, torch.ones_like(norms), norms), factor.T, out=out)
        if self.precision == "bfloat16" and centred.is_cuda:
            return torch.mm(centred.bfloat16(), factor.T, out_dtype=torch.float32)
        if centred.device.type != "cpu" or has_fast_mkl():
            return torch.mm(centred, factor.T, out=out)
        with np.errstate(all="ignore"):  # NaN and Inf propagate
            np.matmul(centred.numpy(), factor.numpy().T, out=out.numpy())
        return out

    def _near_ties(self, centred: Tensor, scores: Tensor, labels: Tensor, squared: Tensor) -> tuple[Tensor, Tensor]:
        """The rows whose best scores differ by less than twice their error, and that for all n rows.

        A nearer centroid is at most as far from the origin as the vector is, plus its distance to the one selected.
        """
        reach = torch.linalg.vector_norm(centred, dim=1) + squared.sqrt()
        error = 2 * torch.finfo(torch.float32).eps * (centred.shape[1] ** 0.5 + 4) * reach.square()
        if self.fused:
            return ((error > TIES * squared) & (squared > 0)).nonzero().flatten(), error
        # Each factor's relative error is uniform up to the roundoff; the errors of a score's terms add up as a walk.
        walk = DEVIATIONS * (2 / 3 * (centred.square() @ self.largest)).sqrt()
        roundoff = ROUNDOFF[self.precision]
        error += 2 * roundoff * torch.minimum(walk, 2 * reach.square())
        if self.halved:  # two scores, each half of a squared distance, lose half of this by being rounded
            error += 2 * roundoff * squared
        each = torch.arange(len(scores), device=scores.device)
        best = scores[each, labels]
        scores[each, labels] = -torch.inf
        second = _largest(scores)
        scores[each, labels] = best
        return (second >= best - error).nonzero().flatten(), error

    def _compared_again(
        self, vectors: Tensor, scores: Tensor, labels: Tensor, squared: Tensor, rows: Tensor, error: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Labels and squared distances after a comparison in float64 of the scores that ``rows`` may have swapped."""
        if not len(rows):
            return labels, squared
        scores, device = scores[rows], exact(vectors.device)
        least = scores.amax(dim=1) - error
        row, code = (scores >= least[:, None]).to(device).nonzero(as_tuple=True)
        distance = _in_float64(vectors[rows].to(device), self.centroids.to(device), row, code)
        smallest = distance.new_full((len(rows),), torch.inf).scatter_reduce(0, row, distance, "amin")
        hit = distance == smallest[row]
        best = row.new_full((len(rows),), len(self.centroids)).scatter_reduce(0, row[hit], code[hit], "amin")
        best, smallest = best.to(labels.device), smallest.float().to(squared.device)
        swapped = best != labels[rows]
        labels[rows[swapped]], squared[rows[swapped]] = best[swapped], smallest[swapped]
        return labels, squared

    def _squared(self, centred: Tensor, labels: Tensor) -> Tensor:
        """Squared distances (n,), from the differences."""
        size = max(1, CELLS.get(centred.device.type, CELLS["cpu"]) // (16 * centred.shape[1]))
        norms = [
            torch.linalg.vector_norm(self.centred[labels[rows]].sub_(centred[rows]), dim=1)
            for rows in slices(len(centred), size)
        ]
        return torch.cat(norms).square()


def _in_float64(vectors: Tensor, centroids: Tensor, row: Tensor, code: Tensor) -> Tensor:
    """Squared distances (P,) float64 of P pairs, from the differences."""
    parts = slices(len(row), max(1, CELLS["cpu"] // (16 * vectors.shape[1])))
    return torch.cat([(vectors[row[p]].double() - centroids[code[p]].double()).square().sum(dim=1) for p in parts])


def slices(length: int, size: int) -> list[slice]:
    """``range(length)`` in slices of ``size``."""
    return [slice(start, start + size) for start in range(0, length, size)]


def _rounded(vectors: Tensor, *more: Tensor) -> Tensor:
    """``vectors`` (n, F) and the channels after them in bfloat16, with zeros up to a multiple of ``TILE``."""
    wide = torch.cat([part.bfloat16() for part in (vectors, *more)], dim=1)
    return torch.nn.functional.pad(wide, (0, -wide.shape[1] % TILE))


def _parts(values: Tensor) -> Tensor:
    """(n, PARTS) bfloat16 that add up to ``values`` (n,) float32."""
    parts: list[Tensor] = []
    for _ in range(PARTS):
        parts.append(values.bfloat16())
        values = (values - parts[-1]).nan_to_num(0.0, 0.0, 0.0)  # an infinite value has no remainder
    return torch.stack(parts, dim=1)


def _argmax(scores: Tensor) -> Tensor:
    """The index of each row's largest score: (n,) int64. On a CPU, NumPy is ten times as fast as torch."""
    if scores.dtype == torch.bfloat16:
        return torch.from_numpy(_bits(scores).argmin(axis=1))
    return torch.from_numpy(scores.numpy().argmax(axis=1)) if scores.device.type == "cpu" else scores.argmax(dim=1)


def _largest(scores: Tensor) -> Tensor:
    """Each row's largest score (n,)."""
    if scores.dtype == torch.bfloat16:
        return torch.from_numpy(_bits(scores).min(axis=1).view(np.int16)).view(torch.bfloat16)
    return scores.amax(dim=1)


def _bits(scores: Tensor) -> np.ndarray:
    """Scores in bfloat16, which are on a CPU, as uint16, the order of which is reversed for negative numbers.

    A positive score is an error of rounding. Such scores come before all others, the smallest first, as near ties.
    """
    return scores.view(torch.int16).numpy().view(np.uint16)


@contextmanager
def _parallel_map(threads: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """``map`` over ``threads`` threads, each of which computes single-threaded.

    Threads that share one product spin while they wait for each other, which slows down what lies between products.
    """
    if threads == 1:
        yield map
        return
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    """Allow or forbid products of float32 in TF32 on CUDA, forbid less than float32 on a CPU; restores both."""
    cuda, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = cuda.fp32_precision, cpu.fp32_precision
    cuda.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    cpu.fp32_precision = "ieee"
    try:
        yield
    finally:
        cuda.fp32_precision, cpu.fp32_precision = before
