"""The nearest of many centroids: one matrix product, and the winner's distance from the difference itself."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mapet.utils.errors import MapetError, nearest

PRECISIONS = ("float32", "tf32", "bfloat16")
CELLS = {"cpu": 1 << 24, "cuda": 1 << 28}  # distances held at once: 64 MiB of float32, or 1 GiB on a GPU
CANDIDATES = 3  # of a product in fewer digits, that are compared again in float32: then under 1 in 1,000 differ


def assign(
    vectors: Tensor, centroids: Tensor, chunk: int | None = None, precision: str = "float32"
) -> tuple[Tensor, Tensor]:
    """The nearest centroid of each vector (N,) int64, and its squared distance (N,) float32, never negative.

    Args:
        vectors: (N, F).
        centroids: (k, F) float32.
        chunk: vectors compared at once, by all threads together; None keeps what they need within 64 MiB, on a GPU
            within 1 GiB (labels apart).
        precision: of the product's factors, "float32", "tf32" (where CUDA has it) or "bfloat16".

    Raises:
        MapetError: an unknown precision.
    """
    return Nearest(centroids, chunk, precision)(vectors)


class Nearest:
    """``assign`` for many sets of vectors and the same centroids.

    Centroids are ranked by a matrix product, of both sides less the centroids' mean, so that a large common offset
    does not cost digits. A product of less than float32 only names three candidates, whose distances decide; its sums
    are float32 in any case.
    """

    def __init__(self, centroids: Tensor, chunk: int | None = None, precision: str = "float32") -> None:
        if precision not in PRECISIONS:
            raise MapetError(f'There is no precision "{precision}".{nearest(precision, PRECISIONS)}')
        self.precision, self.candidates = precision, 1 if precision == "float32" else CANDIDATES
        self.shift = centroids.mean(dim=0)
        self.centred = centroids - self.shift
        self.bias = self.centred.square().sum(dim=1) / 2
        self.factor = self.centred.bfloat16() if precision == "bfloat16" else self.centred
        self.fused = precision == "float32"  # the bias as one more channel
        if self.fused:
            self.factor = torch.cat([self.centred, -self.bias[:, None]], dim=1)
        cells = CELLS.get(centroids.device.type, CELLS["cpu"])
        self.chunk = chunk or max(1, cells // max(centroids.shape))
        self._rooms: list[tuple[Tensor, Tensor]] = []

    def __call__(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Labels (N,) int64 and squared distances (N,) float32 of vectors (N, F)."""
        labels = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
        squared = torch.empty(len(vectors), device=vectors.device)

        vectors, inference = vectors.detach(), torch.is_inference_mode_enabled()

        def compare(rows: slice) -> None:
            with torch.inference_mode(inference), torch.no_grad():  # a thread does not know what its caller set
                labels[rows], squared[rows] = self._compared(vectors[rows])

        threads = torch.get_num_threads() if vectors.device.type == "cpu" else 1
        size = max(1, self.chunk // threads)
        self._make_rooms(threads, min(len(vectors), size))
        with _product_in(self.precision), _each_alone(threads) as every:
            for _ in every(compare, slices(len(vectors), size)):
                pass
        return labels, squared

    def _make_rooms(self, count: int, rows: int) -> None:
        """Two temporaries a thread, used for all chunks: fresh memory costs as much as it takes to fill it."""
        if len(self._rooms) < count or len(self._rooms[0][0]) < rows:
            wide, many = self.factor.shape[1], len(self.centred)
            with torch.inference_mode(False):  # to be written in any mode later
                self._rooms = [
                    (self.centred.new_ones(rows, wide), self.centred.new_empty(rows, many)) for _ in range(count)
                ]

    def _compared(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Labels and squared distances of one chunk."""
        room = self._rooms.pop()
        try:
            wide, scores = (temporary[: len(vectors)] for temporary in room)
            ema_update = torch.sub(vectors, self.shift, out=wide[:, : len(self.shift)])
            scores = self._product(wide, scores)
            return self._decided(ema_update, scores if self.fused else scores.sub_(self.bias))
        finally:
            self._rooms.append(room)

    def _product(self, ema_update: Tensor, out: Tensor) -> Tensor:
        """moved · factorᵀ (n, k) float32; a CPU rounds the factors alone where bfloat16 is asked for.

        NumPy's product is a tenth faster than torch's on the CPUs that were tried, and nowhere slower.
        """
        factor = self.factor
        if self.precision == "bfloat16" and ema_update.is_cuda:
            return torch.mm(ema_update.bfloat16(), factor.T, out_dtype=torch.float32)
        if self.precision == "bfloat16":
            ema_update, factor = ema_update.bfloat16().float(), factor.float()
        if ema_update.device.type != "cpu":
            return torch.mm(ema_update, factor.T, out=out)
        with np.errstate(all="ignore"):  # numbers that are not finite come out as such
            np.matmul(ema_update.numpy(), factor.numpy().T, out=out.numpy())
        return out

    def _decided(self, ema_update: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest (n,) of those with the highest scores, and its squared distance; ``scores`` are used up."""
        labels = best = _highest(scores)
        squared = self._squared(ema_update, labels)
        for _ in range(min(self.candidates, len(self.centred)) - 1):
            scores.scatter_(1, best[:, None], -torch.inf)
            best = _highest(scores)
            other = self._squared(ema_update, best)
            labels, squared = torch.where(other < squared, best, labels), torch.minimum(other, squared)
        return labels, squared

    def _squared(self, ema_update: Tensor, labels: Tensor) -> Tensor:
        """Squared distances (n,) from the differences themselves."""
        size = max(1, CELLS.get(ema_update.device.type, CELLS["cpu"]) // (16 * ema_update.shape[1]))
        norms = [
            torch.linalg.vector_norm(self.centred[labels[rows]].sub_(ema_update[rows]), dim=1)
            for rows in slices(len(ema_update), size)
        ]
        return torch.cat(norms).square()


def slices(length: int, size: int) -> list[slice]:
    """``range(length)`` in parts of ``size``."""
    return [slice(start, start + size) for start in range(0, length, size)]


def _highest(scores: Tensor) -> Tensor:
    """The place of each row's largest score: (n,) int64. NumPy's search is ten times as fast as torch's on a CPU."""
    return torch.from_numpy(scores.numpy().argmax(axis=1)) if scores.device.type == "cpu" else scores.argmax(dim=1)


@contextmanager
def _each_alone(threads: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """``map``, by so many threads, none of which divides its own work further.

    Threads that share one product wait for each other before and after it, awake: that slows down all between.
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
def _product_in(precision: str) -> Iterator[None]:
    """Let CUDA multiply float32 in TF32, or forbid it; what was set before comes back."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before
