"""A codebook: a teacher and centroids of its patch features. A patch's token is its nearest centroid."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mapet.tokenizers.assign import assign
from mapet.tokenizers.codebook_fit import ImagePass, Kept, KMeansSettings, Progress, clusters
from mapet.tokenizers.files import fingerprint
from mapet.tokenizers.kmeans import KMeans
from mapet.tokenizers.kmeans_init import finite
from mapet.tokenizers.teacher import Features, open_teacher
from mapet.tokenizers.tokenizer import in_view, write_folder
from mapet.utils.errors import MapetError, reason
from mapet.utils.process_group import SINGLE_PROCESS, ProcessGroup
from mapet.utils.versions import versions


class Codebook(nn.Module):
    """A tokenizer by the nearest centroid of a teacher's features.

    With a CLIP ResNet as teacher it is the k-CLIP tokenizer of "Learning to Mask and Permute Visual Tokens for Vision
    Transformer Pre-Training" (arXiv 2306.07346).

    Args:
        teacher: gives the features.
        centroids: (k, F) float32.
        metric: "euclidean", or "cosine" for unit vectors.
        provenance: how the centroids were fitted, for JSON.
    """

    kind: ClassVar[str] = "codebook"
    centroids: Tensor

    def __init__(self, teacher: Features, centroids: Tensor, metric: str, provenance: dict[str, Any]):
        super().__init__()
        self.teacher, self.metric, self.provenance = teacher, metric, provenance
        self.register_buffer("centroids", centroids)
        self.vocabulary, self.grid, self.view = len(centroids), teacher.grid, teacher.view

    @classmethod
    @torch.no_grad()
    def fit(
        cls,
        teacher: Features,
        images: ImagePass,
        indices: Tensor,
        settings: KMeansSettings,
        *,
        device: torch.device | str = "cpu",
        process_group: ProcessGroup = SINGLE_PROCESS,
        progress: Progress = lambda what, done, total: None,
        kept: Kept | None = None,
    ) -> Self:
        """Cluster patches of all images; each process reads its share of the images.

        Args:
            teacher: moved to ``device``.
            images: maps indices (n,) int64 to batches of images (B, 3, H, W) uint8 at ``teacher.view.size`` with their
                indices (B,) int64, each once, without unreadable images. Called again for every pass. The order of the
                batches does not change the result; their size changes it by rounding of the features only.
            indices: (N,) int64, indices of all images, the same on every process.
            settings: settings of k-means.
            device: device of features and clusters.
            process_group: the processes; all get the same codebook.
            progress: called with (stage, done, total) for this process's work: "features" of images, then "k-means" on
                vectors, where ``total`` is an upper bound.
            kept: receives the features that are computed, for ``assigned``.

        Raises:
            MapetError: fewer patches than codes, features with NaN or Inf, too little memory.
        """
        best, samples = clusters(
            teacher.to(device), images, indices, settings, torch.device(device), process_group, progress, kept
        )
        provenance = {**asdict(settings), "asked_samples": settings.samples, "samples": samples, "images": len(indices)}
        return cls(teacher, best.centroids, settings.metric, provenance | _record(best))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) float32 in [0, 1] at ``view.size`` to tokens (B, L) int64, patches in row-major order.

        Raises:
            MapetError: features with NaN or Inf.
        """
        return self.measure(images)[0]

    @torch.no_grad()
    def measure(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, L) as ``encode``, squared distances (B, L) to their centroids, and the vectors (B, L, F).

        Raises:
            MapetError: features with NaN or Inf.
        """
        return self.assigned(self.teacher(in_view(images, self)))

    @torch.no_grad()
    def assigned(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As ``measure``, for features (B, L, F) of the teacher.

        Raises:
            MapetError: features with NaN or Inf.
        """
        vectors = normalize(features, dim=-1) if self.metric == "cosine" else features
        tokens, squared = assign(vectors.flatten(0, 1), self.centroids)
        finite(squared.sum())
        return tokens.view(features.shape[:2]), squared.view(features.shape[:2]), vectors

    @property
    def hash(self) -> str:
        """BLAKE2b of the centroids, the metric and the teacher's description."""
        notes = json.dumps(self.teacher.describe(), sort_keys=True)
        return fingerprint({"centroids": self.centroids}, self.metric, notes)

    def save(self, folder: Path) -> None:
        """Write a folder for ``load_tokenizer``."""
        fields = {
            "kind": self.kind,
            "hash": self.hash,
            "teacher": self.teacher.describe(),
            "origin": self.teacher.origin,
            "source": self.teacher.source,
            "metric": self.metric,
            "provenance": self.provenance,
        }
        write_folder(folder, fields, {"centroids": self.centroids})

    @classmethod
    def restored(
        cls, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path, teacher_weights: Path | None
    ) -> Self:
        """Rebuild a saved codebook with its teacher.

        Raises:
            MapetError: the teacher's weights are missing, or differ from those that the codebook was fitted with.
        """
        teacher = _teacher(fields["teacher"], fields["origin"], fields["source"], teacher_weights, folder)
        return cls(teacher, tensors["centroids"], fields["metric"], dict(fields["provenance"]))


def usage(tokens: Tensor, vocabulary: int) -> Tensor:
    """Counts (vocabulary,) int64 of each code in ``tokens`` (any shape, integers)."""
    return torch.bincount(tokens.flatten().long(), minlength=vocabulary)


def perplexity(counts: Tensor) -> float:
    """Exponential of the entropy of ``counts`` (V,): V for uniform use, 1 for a single code."""
    return float(torch.special.entr(counts.double() / counts.sum()).sum().exp())


def _record(run: KMeans) -> dict[str, Any]:
    return {
        "objective": run.objective,
        "counts": run.counts.tolist(),
        "perplexity": perplexity(run.counts),
        "versions": versions(("mapet", "torch", "timm")),
    }


def _teacher(recorded: dict[str, Any], origin: str, source: str, weights: Path | None, folder: Path) -> Features:
    """The recorded teacher, refused when its weights are others."""
    if source != recorded["name"]:
        source, weights = str(weights or source), None
        if not Path(source).is_dir():
            raise MapetError(f"The teacher of {folder} was in {source}: give its folder with --teacher-weights.")
    elif weights is None and origin not in ("published", "random"):
        raise MapetError(f"The teacher of {folder} was read from the file {origin}: give it with --teacher-weights.")
    rows, columns = recorded["grid"]
    patch_size, output = recorded["view"]["size"][0] // rows, recorded.get("output", "stage")
    try:
        teacher = open_teacher(
            source,
            (rows, columns),
            patch_size=patch_size,
            stage=recorded.get("stage"),
            output=output,
            weights=weights,
            pretrained=origin != "random",
        )
    except MapetError:
        raise
    except Exception as error:  # a library of another version, or one that is not installed
        why = f"{type(error).__name__}: {reason(error)}"
        raise MapetError(f"The teacher {source} of {folder} cannot be built here ({why}).") from error
    found = teacher.describe()
    for name in sorted(found, reverse=True):
        if found[name] != recorded.get(name):
            raise MapetError(
                f"The codebook in {folder} was fitted with {recorded['name']} {name} {recorded.get(name)}, not "
                f"{found[name]}: give the same weights with --teacher-weights, or fit a new codebook."
            )
    return teacher
