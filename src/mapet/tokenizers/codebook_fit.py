"""k-means over the patch features of many images, which need not fit into memory."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mapet.tokenizers.assign import CELLS, PRECISIONS
from mapet.tokenizers.kmeans import METRICS, KMeans, kmeans
from mapet.tokenizers.kmeans_init import plus_plus, sampled
from mapet.tokenizers.patch_sample import ROW, PatchSample
from mapet.tokenizers.teacher import Features
from mapet.tokenizers.vector_pool import VectorPool
from mapet.utils.errors import MapetError, nearest
from mapet.utils.process_group import ProcessGroup
from mapet.utils.rng import exact, random_bits

STARTS = {"k-means++": plus_plus, "sample": sampled}
MODES = {"sample": 512, "stream": 8}  # mode → default number of vectors in memory per code
RESTART = 0x5253  # salt
KEPT = 1 << 30  # bytes of features that are kept for the tokens of the same images

ImagePass = Callable[[Tensor], Iterable[tuple[Tensor, Tensor]]]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class KMeansSettings:
    """Settings of k-means over patch features.

    Attributes:
        codes: number of centroids.
        samples: vectors in memory, over all processes; None for 512 per code (published), or 8 in mode "stream".
        iterations: maximum number of Lloyd's iterations.
        restarts: runs, of which the best is kept; published: 5.
        start: initial centroids from the vectors in memory: "k-means++" or "sample".
        metric: "euclidean" or "cosine".
        mode: "sample" clusters the vectors in memory, a uniform sample of all patches; "stream" clusters all patches
            and computes their features again in each iteration.
        precision: precision of the distances' products, as in ``assign``.
        seed: random seed.

    Raises:
        MapetError: an unknown start, metric, mode or precision.
    """

    codes: int = 8192
    samples: int | None = None
    iterations: int = 20
    restarts: int = 1
    start: str = "k-means++"
    metric: str = "euclidean"
    mode: str = "sample"
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("start", STARTS), ("metric", METRICS), ("mode", MODES), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise MapetError(f'There is no {name} "{getattr(self, name)}".{nearest(getattr(self, name), known)}')

    def held(self, patches: int) -> int:
        """Number of vectors in memory, over all processes, out of ``patches``."""
        return min(self.samples or MODES[self.mode] * self.codes, patches)

    def footprint(self, patches: int, width: int, process_group: ProcessGroup) -> int:
        """Maximum bytes of memory per process, without the teacher and a batch of its features.

        The sum of the vectors with their random keys and distances, the centroids with their float64 sums and copies,
        and five temporaries.
        """
        held = self.held(patches) * (4 * width // process_group.count + ROW)
        return held + 40 * self.codes * width + 5 * 4 * CELLS["cpu"]


class FeatureStream:
    """The features of all patches of some images in chunks (B · L, F), computed again in each pass.

    Args:
        teacher: on ``device``.
        images: as in ``Codebook.fit``.
        indices: indices of the images.
        device: device of the teacher.
    """

    def __init__(self, teacher: Features, images: ImagePass, indices: Tensor, device: torch.device) -> None:
        self.teacher, self.images, self.indices, self.device = teacher, images, indices, device

    def __iter__(self) -> Iterator[Tensor]:
        return (features.flatten(0, 1) for features, _ in self.batches(self.indices))

    def batches(self, indices: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Features (B, L, F) and indices (B,) of the images at ``indices``."""
        for images, index in self.images(indices):
            yield self.teacher(images.to(self.device).float() / 255), index


class Kept:
    """Features of images that a fit has computed, for their tokens: the first ones, up to ``KEPT`` bytes."""

    def __init__(self) -> None:
        self._rows: dict[int, Tensor] = {}
        self._bytes = 0

    def add(self, features: Tensor, index: Tensor) -> None:
        """Keep the features (B, L, F) of the images ``index`` (B,), if they are on the CPU and fit."""
        if features.device.type == "cpu" and self._bytes + features.nbytes <= KEPT:
            self._rows |= zip(index.tolist(), features, strict=True)
            self._bytes += features.nbytes

    def among(self, indices: Tensor) -> Tensor:
        """Which of the images ``indices`` (N,) are kept: (N,) bool."""
        return torch.tensor([index in self._rows for index in indices.tolist()], dtype=torch.bool)

    def take(self, indices: Tensor) -> Tensor:
        """The features (N, L, F) of kept images, which are forgotten."""
        return torch.stack([self._rows.pop(index) for index in indices.tolist()])


class Counted:
    """Chunks moved to a device; ``report`` gets the number of vectors so far."""

    def __init__(self, chunks: Iterable[Tensor], device: torch.device, report: Callable[[int], None]) -> None:
        self.chunks, self.device, self.report, self.done = chunks, device, report, 0

    def __iter__(self) -> Iterator[Tensor]:
        for chunk in self.chunks:
            yield chunk.to(self.device)
            self.done += len(chunk)
            self.report(self.done)


def clusters(
    teacher: Features,
    images: ImagePass,
    indices: Tensor,
    f: KMeansSettings,
    device: torch.device,
    process_group: ProcessGroup,
    progress: Progress,
    kept: Kept | None = None,
) -> tuple[KMeans, int]:
    """Fit k-means; returns the best run, and the number of vectors in memory. Arguments as ``Codebook.fit``.

    Raises:
        MapetError: fewer patches than codes, or features with NaN or Inf.
    """
    stream = FeatureStream(teacher, images, process_group.share(indices), device)
    pool = _pool(stream, indices, f, process_group, progress, kept)
    chunks, count = (
        (pool, len(pool.vectors)) if f.mode == "sample" else (stream, len(stream.indices) * _length(teacher))
    )
    total = f.restarts * (f.iterations + 1) * count
    counted = Counted(chunks, pool.device, lambda done: progress("k-means", done, total))
    runs = (
        kmeans(
            counted,
            STARTS[f.start](pool, f.codes, int(random_bits(f.seed, RESTART, turn))),
            iterations=f.iterations,
            metric=f.metric,
            reduce=process_group.sum,
            precision=f.precision,
        )
        for turn in range(f.restarts)
    )
    return min(runs, key=lambda run: min(run.objective)), pool.total


def _pool(
    stream: FeatureStream,
    indices: Tensor,
    f: KMeansSettings,
    process_group: ProcessGroup,
    progress: Progress,
    kept: Kept | None,
) -> VectorPool:
    """A uniform sample of the patches of the images at ``indices``; unit vectors if the metric is cosine."""
    teacher, length = stream.teacher, _length(stream.teacher)
    count = f.held(len(indices) * length)
    _require(count, f.codes, indices, teacher)
    sample, done = PatchSample(indices, length, teacher.width, count, f.seed, process_group), 0
    for features, index in stream.batches(sample.indices):
        sample.add(features, index)
        if kept is not None:
            kept.add(features, index)
        done += len(index)
        progress("features", done, len(sample.indices))
    pool = sample.pool(exact(stream.device))
    _require(pool.total, f.codes, indices, teacher)
    for part in pool.slices if f.metric == "cosine" else ():
        pool.vectors[part] = normalize(pool.vectors[part])
    return pool


def _length(teacher: Features) -> int:
    return teacher.grid[0] * teacher.grid[1]


def _require(vectors: int, codes: int, indices: Tensor, teacher: Features) -> None:
    if vectors < codes:
        raise MapetError(
            f"{codes} codes need at least {codes} patches, got {vectors} ({len(indices)} images, grid "
            f"{teacher.grid[0]}x{teacher.grid[1]}): use fewer codes, more samples or more images."
        )
