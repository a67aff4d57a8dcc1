"""A codebook: a teacher and the centroids of its patch features. The nearest centroid is the patch's token."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mapet.tokenizers.assign import assign
from mapet.tokenizers.codebook_fit import ImagePass, KMeansSettings, Progress, clusters
from mapet.tokenizers.files import fingerprint
from mapet.tokenizers.kmeans import KMeans
from mapet.tokenizers.kmeans_init import finite
from mapet.tokenizers.teacher import Features, open_teacher
from mapet.tokenizers.tokenizer import in_view, write_folder
from mapet.utils.errors import MapetError
from mapet.utils.process_group import SINGLE_PROCESS, ProcessGroup
from mapet.utils.versions import versions


class Codebook(nn.Module):
    """Turns images into visual tokens by the nearest centroid of their teacher's features.

    With a CLIP ResNet as teacher it is the k-CLIP tokenizer of "Learning to Mask and Permute Visual Tokens for Vision
    Transformer Pre-Training" (arXiv 2306.07346).

    Args:
        teacher: what the features come from.
        centroids: (k, F) float32.
        metric: "euclidean", or "cosine" for unit vectors.
        provenance: how the centroids came about, ready for JSON.
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
    ) -> Self:
        """Cluster patches of all images, by one process or several that each read their share of the images.

        Args:
            teacher: is moved to ``device``.
            images: from places to their images (B, 3, H, W) uint8 at ``teacher.view.size`` and their places (B,)
                int64, each once, in batches. It is called for a part of ``indices``, again for every pass over it; what
                cannot be read is left out. The result does not depend on the batches' order, and on their sizes
                only by rounding of the features.
            places: (N,) int64, the numbers of all images, the same on every process.
            settings: of k-means.
            device: where features and clusters are computed.
            crew: the processes; all of them get the same codebook.
            progress: is told of this process's work what is going on ("features" of images, then "k-means" on
                vectors), how much is done, and of how much at most.

        Raises:
            MapetError: fewer patches than codes, features that are not finite, too little memory.
        """
        best, samples = clusters(
            teacher.to(device), images, indices, settings, torch.device(device), process_group, progress
        )
        story = {**asdict(settings), "asked_samples": settings.samples, "samples": samples, "images": len(indices)}
        story |= _record(best)
        return cls(teacher, best.centroids, settings.metric, story)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) float32 in [0, 1] at ``view.size`` to tokens (B, L) int64, patches row by row.

        Raises:
            MapetError: features that are not finite.
        """
        return self.measure(images)[0]

    @torch.no_grad()
    def measure(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, L) as ``encode``, squared distances (B, L) to their centroids, and the vectors (B, L, F).

        Raises:
            MapetError: features that are not finite.
        """
        features = self.teacher(in_view(images, self))
        vectors = normalize(features, dim=-1) if self.metric == "cosine" else features
        tokens, squared = assign(vectors.flatten(0, 1), self.centroids)
        finite(squared.sum())
        return tokens.view(features.shape[:2]), squared.view(features.shape[:2]), vectors

    @property
    def hash(self) -> str:
        """Identifies the tokenizer: a BLAKE2b of the centroids, the metric and the teacher's description."""
        notes = json.dumps(self.teacher.describe(), sort_keys=True)
        return fingerprint({"centroids": self.centroids}, self.metric, notes)

    def save(self, folder: Path) -> None:
        """Write a folder that ``load_tokenizer`` reads."""
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
        """What ``save`` wrote, its teacher built anew.

        Raises:
            MapetError: the teacher's weights are not those that the codebook was fitted with, or cannot be had.
        """
        teacher = _teacher(fields["teacher"], fields["origin"], fields["source"], teacher_weights, folder)
        return cls(teacher, tensors["centroids"], fields["metric"], dict(fields["provenance"]))


def usage(tokens: Tensor, vocabulary: int) -> Tensor:
    """How often each code occurs in ``tokens`` (any shape, integers): (vocabulary,) int64."""
    return torch.bincount(tokens.flatten().long(), minlength=vocabulary)


def perplexity(counts: Tensor) -> float:
    """The exponential of the entropy of ``counts`` (V,): V where all codes occur alike, 1 where only one does."""
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
            raise MapetError(f"The teacher of {folder} was in {source}: name its folder with --teacher-weights.")
    elif weights is None and origin not in ("published", "random"):
        raise MapetError(f"The teacher of {folder} was read from the file {origin}: name it with --teacher-weights.")
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
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise MapetError(f"The teacher {source} of {folder} cannot be built here ({reason}).") from error
    found = teacher.describe()
    for name in sorted(found, reverse=True):
        if found[name] != recorded.get(name):
            raise MapetError(
                f"The codebook in {folder} was fitted with {recorded['name']} {name} {recorded.get(name)}, and these "
                f"are {found[name]}: give the same weights with --teacher-weights, or fit a codebook anew."
            )
    return teacher
