"""A codebook: a teacher and the centroids of its patch features. The nearest centroid is the patch's token."""

import json
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.functional import normalize

from mapet.errors import MapetError, nearest
from mapet.hashing import hashed
from mapet.tokenizers.files import fingerprint, read_json, replace_file
from mapet.tokenizers.kmeans import KMeans, assign, kmeans
from mapet.tokenizers.sample import PatchSample
from mapet.tokenizers.seeding import plus_plus, sampled
from mapet.tokenizers.teacher import Teacher

STARTS = {"k-means++": plus_plus, "sample": sampled}
RESTART = 0x5253  # salt
TENSORS, FIELDS = "codebook.safetensors", "codebook.json"


class Codebook(nn.Module):
    """Turns pictures into visual tokens by the nearest centroid of their teacher's features.

    With a CLIP ResNet as teacher it is the k-CLIP tokenizer of "Learning to Mask and Permute Visual Tokens for Vision
    Transformer Pre-Training" (arXiv 2306.07346).

    Args:
        teacher: what the features come from.
        centroids: (k, F) float32.
        metric: "euclidean", or "cosine" for unit vectors.
        provenance: how the centroids came about, ready for JSON.
    """

    centroids: Tensor

    def __init__(self, teacher: Teacher, centroids: Tensor, metric: str, provenance: dict[str, Any]):
        super().__init__()
        self.teacher, self.metric, self.provenance = teacher, metric, provenance
        self.register_buffer("centroids", centroids)
        self.vocabulary, self.grid, self.view = len(centroids), teacher.grid, teacher.view

    @classmethod
    def fit(
        cls,
        teacher: Teacher,
        batches: Iterable[tuple[Tensor, Tensor]],
        *,
        codes: int = 8192,
        samples: int | None = None,
        iterations: int = 20,
        restarts: int = 1,
        start: str = "k-means++",
        metric: str = "euclidean",
        seed: int = 0,
        device: torch.device | str = "cpu",
        progress: Callable[[int], None] | None = None,
    ) -> Self:
        """Cluster a uniform sample of all patches of all pictures.

        Args:
            teacher: is moved to ``device``.
            batches: pictures (B, 3, H, W) uint8 at ``teacher.view.size`` and their numbers (B,) int64, each once; the
                result does not depend on their order and depends on the batch sizes only by rounding of the features.
            codes: centroids wanted.
            samples: vectors to cluster at most; None for 512 a code, the published setting.
            iterations: of Lloyd's, at most.
            restarts: the best of this many runs is kept; the published setting is 5.
            start: "k-means++" or "sample".
            metric: "euclidean" or "cosine".
            seed: of the sample and the starts.
            device: where features and clusters are computed.
            progress: is told how many pictures have been seen.

        Raises:
            MapetError: fewer patches than codes, an unknown start or metric, features that are not finite.
        """
        if start not in STARTS:
            raise MapetError(f'There is no start "{start}".{nearest(start, STARTS)}')
        teacher = teacher.to(device)
        pool, pictures = _collect(teacher, batches, samples or 512 * codes, seed, device, progress)
        vectors = pool.vectors().to(device)
        _require(len(vectors), codes, pictures, teacher.grid)
        vectors = normalize(vectors) if metric == "cosine" else vectors
        runs = (
            kmeans(
                vectors,
                STARTS[start](vectors, codes, _restart(seed, turn)),
                iterations=iterations,
                metric=metric,
            )
            for turn in range(max(1, restarts))
        )
        best = min(runs, key=lambda run: min(run.objective))
        asked = {
            "seed": seed,
            "start": start,
            "iterations": iterations,
            "restarts": restarts,
            "metric": metric,
        }
        found = {"pictures": pictures, "samples": len(vectors)}
        return cls(teacher, best.centroids, metric, {**asked, **found, **_record(best)})

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) float32 in [0, 1] at ``view.size`` to tokens (B, L) int64, patches row by row."""
        features = self.teacher(images)
        vectors = features.flatten(0, 1)
        vectors = normalize(vectors) if self.metric == "cosine" else vectors
        return assign(vectors, self.centroids)[0].view(features.shape[:2])

    @property
    def hash(self) -> str:
        """Identifies the tokenizer: a BLAKE2b of the centroids, the metric and the teacher's description."""
        notes = json.dumps(self.teacher.describe(), sort_keys=True)
        return fingerprint({"centroids": self.centroids}, self.metric, notes)

    def save(self, folder: Path) -> None:
        """Write ``codebook.safetensors`` and ``codebook.json``; a new folder appears only when both are complete."""
        fields = {
            "hash": self.hash,
            "teacher": self.teacher.describe(),
            "origin": self.teacher.origin,
            "metric": self.metric,
            "provenance": self.provenance,
        }
        part = folder.with_name(folder.name + ".part")
        part.mkdir(parents=True, exist_ok=True)
        replace_file(part / TENSORS, save({"centroids": self.centroids.cpu().contiguous()}))
        replace_file(part / FIELDS, json.dumps(fields, indent=2).encode())
        if not folder.exists():
            part.rename(folder)
            return
        for name in (TENSORS, FIELDS):
            (part / name).replace(folder / name)
        part.rmdir()

    @classmethod
    def load(cls, folder: Path, *, teacher_weights: Path | None = None) -> Self:
        """Read what ``save`` wrote, and build its teacher anew.

        Raises:
            MapetError: not a codebook, damaged, or the teacher's weights are not those that it was fitted with.
        """
        fields = read_json(folder / FIELDS, "a codebook")
        try:
            teacher = _teacher(fields["teacher"], fields["origin"], teacher_weights, folder)
            centroids = load_file(folder / TENSORS)["centroids"]
            book = cls(teacher, centroids, fields["metric"], fields["provenance"])
            intact = book.hash == fields["hash"]
        except (KeyError, TypeError, OSError, SafetensorError):
            intact = False
        if not intact:
            raise MapetError(f"The codebook in {folder} is damaged: {TENSORS} and {FIELDS} do not belong together.")
        return book


def usage(tokens: Tensor, vocabulary: int) -> Tensor:
    """How often each code occurs in ``tokens`` (any shape, integers): (vocabulary,) int64."""
    return torch.bincount(tokens.flatten().long(), minlength=vocabulary)


def perplexity(counts: Tensor) -> float:
    """The exponential of the entropy of ``counts`` (V,): V where all codes occur alike, 1 where only one does."""
    return float(torch.special.entr(counts.double() / counts.sum()).sum().exp())


def _collect(
    teacher: Teacher,
    batches: Iterable[tuple[Tensor, Tensor]],
    samples: int,
    seed: int,
    device: torch.device | str,
    progress: Callable[[int], None] | None,
) -> tuple[PatchSample, int]:
    """The sample of patch features, and the number of pictures that it was drawn from."""
    pool, pictures = PatchSample(samples, teacher.width, seed), 0
    for images, index in batches:
        pool.add(teacher(images.to(device).float() / 255), index)
        pictures += len(index)
        if progress is not None:
            progress(pictures)
    return pool, pictures


def _require(vectors: int, codes: int, pictures: int, grid: tuple[int, int]) -> None:
    if vectors < codes:
        raise MapetError(
            f"{codes} codes need at least {codes} patches, and there are {vectors} ({pictures} pictures, a grid of "
            f"{grid[0]}x{grid[1]}): use fewer codes, more samples or more pictures."
        )


def _restart(seed: int, turn: int) -> int:
    return int(hashed(seed, RESTART, turn))


def _record(run: KMeans) -> dict[str, Any]:
    return {
        "objective": run.objective,
        "counts": run.counts.tolist(),
        "perplexity": perplexity(run.counts),
        "versions": {name: version(name) for name in ("mapet", "torch", "timm")},
    }


def _teacher(recorded: dict[str, Any], origin: str, weights: Path | None, folder: Path) -> Teacher:
    """The recorded teacher, refused when its weights are others."""
    if weights is None and origin not in ("published", "random"):
        raise MapetError(f"The teacher of {folder} was read from the file {origin}: name it with --teacher-weights.")
    rows, columns = recorded["grid"]
    teacher = Teacher(
        recorded["name"],
        (rows, columns),
        stage=recorded["stage"],
        weights=weights,
        pretrained=origin != "random",
    )
    found = teacher.describe()["weights"]
    if found != recorded["weights"]:
        raise MapetError(
            f"The codebook in {folder} was fitted with {recorded['name']} weights {recorded['weights']}, and these are "
            f"{found}: give the same weights with --teacher-weights, or fit a codebook anew."
        )
    return teacher
