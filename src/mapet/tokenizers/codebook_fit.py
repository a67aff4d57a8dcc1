"""k-means over the patch features of many images, of which never all are held at once."""

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
from mapet.tokenizers.vector_pool import Pool
from mapet.utils.errors import MapetError, nearest
from mapet.utils.process_group import ProcessGroup
from mapet.utils.rng import exact, random_bits

STARTS = {"k-means++": plus_plus, "sample": sampled}
MODES = {"sample": 512, "stream": 8}  # and the vectors that are held for each code, where nothing else is said
RESTART = 0x5253  # salt

ImagePass = Callable[[Tensor], Iterable[tuple[Tensor, Tensor]]]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class KMeansSettings:
    """Settings of k-means over patch features.

    Attributes:
        codes: centroids wanted.
        samples: vectors held at once, over all processes; None for 512 a code, the published setting, or for 8 a code
            in mode "stream".
        iterations: of Lloyd's, at most.
        restarts: the best of this many runs is kept; the published setting is 5.
        start: "k-means++" or "sample", both from the held vectors.
        metric: "euclidean" or "cosine".
        mode: "sample" clusters the held vectors, a uniform sample of all patches; "stream" clusters all patches, whose
            features are computed anew in each iteration.
        precision: of the distances' products, as in ``assign``.
        seed: of the sample and the starts.

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
        """How many of ``patches`` vectors are held at once, over all processes."""
        return min(self.samples or MODES[self.mode] * self.codes, patches)

    def footprint(self, patches: int, width: int, process_group: ProcessGroup) -> int:
        """Bytes of memory that each process takes at most, beside the teacher and a batch of its features.

        They are the held vectors, each with its keys and distances; the centroids, their float64 sums and copies; and
        five temporaries.
        """
        held = self.held(patches) * (4 * width // process_group.count + ROW)
        return held + 40 * self.codes * width + 5 * 4 * CELLS["cpu"]


class FeatureStream:
    """The features of all patches of some images, computed anew in each pass: chunks (B · L, F).

    Args:
        teacher: on ``device``.
        images: from places to their images (B, 3, H, W) uint8 at the teacher's view and their places (B,), each
            once, in batches; images that cannot be read are left out.
        places: of the images.
        device: where the teacher is.
    """

    def __init__(self, teacher: Features, images: ImagePass, indices: Tensor, device: torch.device) -> None:
        self.teacher, self.images, self.indices, self.device = teacher, images, indices, device

    def __iter__(self) -> Iterator[Tensor]:
        return (features.flatten(0, 1) for features, _ in self.batches(self.indices))

    def batches(self, indices: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Features (B, L, F) and places (B,) of the images at ``indices``."""
        for images, index in self.images(indices):
            yield self.teacher(images.to(self.device).float() / 255), index


class Watched:
    """Chunks that go through on the way to another device, and are counted."""

    def __init__(self, chunks: Iterable[Tensor], device: torch.device, tell: Callable[[int], None]) -> None:
        self.chunks, self.device, self.tell, self.done = chunks, device, tell, 0

    def __iter__(self) -> Iterator[Tensor]:
        for chunk in self.chunks:
            yield chunk.to(self.device)
            self.done += len(chunk)
            self.tell(self.done)


def clusters(
    teacher: Features,
    images: ImagePass,
    indices: Tensor,
    f: KMeansSettings,
    device: torch.device,
    process_group: ProcessGroup,
    tell: Progress,
) -> tuple[KMeans, int]:
    """The best of the restarts, and the number of vectors that were held.

    Raises:
        MapetError: fewer patches than codes, or features that are not finite.
    """
    stream = FeatureStream(teacher, images, process_group.share(indices), device)
    pool = _pool(stream, indices, f, process_group, tell)
    chunks, share = (
        (pool, len(pool.vectors)) if f.mode == "sample" else (stream, len(stream.indices) * _length(teacher))
    )
    total = f.restarts * (f.iterations + 1) * share
    watched = Watched(chunks, pool.device, lambda done: tell("k-means", done, total))
    runs = (
        kmeans(
            watched,
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
    stream: FeatureStream, indices: Tensor, f: KMeansSettings, process_group: ProcessGroup, tell: Progress
) -> Pool:
    """A uniform sample of the patches of the images at ``indices``; unit vectors where the metric is cosine."""
    teacher, length = stream.teacher, _length(stream.teacher)
    count = f.held(len(indices) * length)
    _require(count, f.codes, indices, teacher)
    sample, done = PatchSample(indices, length, teacher.width, count, f.seed, process_group), 0
    for features, index in stream.batches(sample.indices):
        sample.add(features, index)
        done += len(index)
        tell("features", done, len(sample.indices))
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
            f"{codes} codes need at least {codes} patches, and there are {vectors} ({len(indices)} images, a grid of "
            f"{teacher.grid[0]}x{teacher.grid[1]}): use fewer codes, more samples or more images."
        )
