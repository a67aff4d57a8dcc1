"""Usage of a vocabulary: how often its codes occur, which never occur, and how far patches are from their codes."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from mapet.tokenizers.codebook import perplexity, usage
from mapet.utils.errors import MapetError

ENOUGH = 10  # patches per code before a verdict: a uniformly used code is then missed once in e^10 = 22,000 times
DEAD = 0.1  # share of dead codes: about 0 for k-means; half and more are reported for collapsed VQ codebooks
EVEN = 0.25  # perplexity / codes: about 0.9 for k-means; at 0.25 two bits of every token are unused
MOST = 0.1  # share of patches of one code: a constant guess is then right for every tenth token
EXCESS = 4  # multiple of its uniform share that this code must also have, for vocabularies of a few codes


@dataclass(frozen=True)
class Health:
    """Usage of a vocabulary's codes by some images.

    Attributes:
        images: number of images.
        patches: number of their patches.
        vocabulary: number of codes.
        seen: codes that occurred.
        missed: estimate (lower bound) of the codes that are in use but did not occur in so few images.
        perplexity: exponential of the entropy of the codes' frequencies; the vocabulary for uniform use.
        most: the most frequent code.
        share: its share of all patches, in [0, 1]: the accuracy of always guessing it.
    """

    images: int
    patches: int
    vocabulary: int
    seen: int
    missed: float
    perplexity: float
    most: int
    share: float

    @classmethod
    def of(cls, tokens: Tensor, vocabulary: int) -> Self:
        """From the tokens (N, L) of N images, integers below ``vocabulary``; N × L is at least 1."""
        counts = usage(tokens, vocabulary)
        return cls(
            images=len(tokens),
            patches=tokens.numel(),
            vocabulary=vocabulary,
            seen=int((counts > 0).sum()),
            missed=missed(occurrence(tokens, vocabulary), len(tokens)),
            perplexity=perplexity(counts),
            most=int(counts.argmax()),
            share=int(counts.max()) / tokens.numel(),
        )

    @property
    def dead(self) -> float:
        """Estimated number of codes that are never used."""
        return self.vocabulary - self.seen - self.missed

    @property
    def bits(self) -> float:
        """Entropy of a token in bits, at most log2 of the vocabulary."""
        return math.log2(self.perplexity)

    @property
    def judged(self) -> bool:
        """Whether the sample suffices for a verdict: many patches, or so few codes that more patches change nothing.

        Patches of one image are alike, so few codes are compared with the number of images.
        """
        few = self.perplexity < EVEN * min(self.vocabulary, self.images)
        return few or self.patches >= ENOUGH * self.vocabulary

    def warnings(self) -> list[str]:
        """Problems, a sentence of at most 68 characters each; empty for a healthy codebook or too few patches."""
        if not self.judged:
            return []
        size, problems = self.vocabulary, []
        if self.dead > DEAD * size:
            problems.append(f"{self.dead / size:.0%} of the codes are dead: their rows of the head learn nothing.")
        if self.perplexity < EVEN * size:
            problems.append(f"Uneven use: {size} codes do the work of {self.perplexity:.0f}.")
        if self.share > max(MOST, EXCESS / size):
            problems.append(f"Code {self.most} is {self.share:.0%} of all patches: predicting it teaches little.")
        return problems


def occurrence(tokens: Tensor, vocabulary: int) -> Tensor:
    """Number of images in which each code occurs: tokens (N, L) → (vocabulary,) int64."""
    ordered = tokens.sort(dim=1).values
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return usage(ordered[first], vocabulary)


def missed(occurrences: Tensor, images: int) -> float:
    """Lower bound of the number of codes that are in use but occurred in none of the images.

    Chao's bias-corrected estimate from the codes that occurred in one image and in two (Biometrics 1987,
    doi 10.2307/2531532). It counts images, not patches, as patches of one image are alike.

    Args:
        occurrences: (V,) int64, number of images in which each code occurred.
        images: number of images, at least 1.
    """
    once, twice, never = (int((occurrences == times).sum()) for times in (1, 2, 0))
    return min(never, (images - 1) / images * math.comb(once, 2) / (twice + 1))


class Distortion:
    """Distance of vectors from their codes, accumulated over batches."""

    def __init__(self) -> None:
        self._count, self._squared, self._moment = 0, 0.0, 0.0
        self._shift = self._sum = torch.zeros(())

    def add(self, squared: Tensor, vectors: Tensor) -> None:
        """Add squared distances (B, L) of vectors (B, L, F) to their codes."""
        flat = vectors.flatten(0, 1)
        if not self._count:
            self._shift = flat.mean(dim=0)
            self._sum = torch.zeros(flat.shape[1], dtype=torch.float64)
        shifted = flat - self._shift  # so that a large common offset does not cost precision
        self._count += len(flat)
        self._sum += shifted.sum(dim=0).cpu()
        self._moment += float(shifted.square().sum())
        self._squared += float(squared.sum())

    def result(self) -> tuple[float, float]:
        """The mean squared distance, and its ratio to the variance of the vectors.

        Raises:
            MapetError: NaN or Inf.
        """
        distance = self._squared / self._count
        variance = self._moment / self._count - float((self._sum / self._count).square().sum())
        if not math.isfinite(distance + variance):
            raise MapetError("The teacher's features hold NaN or Inf: its weights are damaged, give others.")
        return distance, distance / variance if variance > 0 else 0.0


def nearest_patches(tokens: Tensor, squared: Tensor, code: int, count: int) -> tuple[Tensor, Tensor]:
    """The patches nearest to a code, one per image, nearest first; ties in the order of the rows.

    Args:
        tokens: (N, L) integers.
        squared: (N, L) finite, squared distances of the patches to their codes.
        code: the code.
        count: maximum number of patches.

    Returns:
        Rows (n,) of ``tokens`` and patch indices (n,), n ≤ ``count``.
    """
    own, patch = squared.where(tokens == code, torch.inf).min(dim=1)
    rows = own.argsort(stable=True)[:count]
    rows = rows[own[rows] < torch.inf]
    return rows, patch[rows]
