"""Is a vocabulary put to use? How often its codes occur, which ones never do, how far from them the patches lie."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from mapet.tokenizers.codebook import perplexity, usage
from mapet.utils.errors import MapetError

ENOUGH = 10  # patches a code before anything is judged: a code in even use is then missed once in e^10 = 22,000 times
DEAD = 0.1  # of all codes: k-means leaves about none dead; of collapsing VQ codebooks, half and more are reported
EVEN = 0.25  # perplexity over codes: k-means has about 0.9, and at 0.25 two bits of every token are never used
MOST = 0.1  # of all patches of one code: a guess is then right for every tenth token, and its image is not looked at
EXCESS = 4  # times its even share that this code must have too, for vocabularies of a few codes


@dataclass(frozen=True)
class Health:
    """How the codes of a vocabulary were used by some images.

    Attributes:
        images: how many there were.
        patches: how many they have together.
        vocabulary: codes in all.
        seen: codes that occurred.
        missed: of the others, those in use that so few images lack by chance (an estimate from below).
        perplexity: exponential of the entropy of the codes' frequencies; the vocabulary where all occur alike.
        most: the most frequent code.
        share: of all patches that are of this code, in [0, 1]: the accuracy of always guessing it.
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
        """Of the tokens (N, L) of N images, integers below ``vocabulary``; N × L is at least 1."""
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
        """Codes that are never used, as far as these images can tell."""
        return self.vocabulary - self.seen - self.missed

    @property
    def bits(self) -> float:
        """Entropy of a token, at most log2 of the vocabulary."""
        return math.log2(self.perplexity)

    @property
    def judged(self) -> bool:
        """Whether an unhealthy codebook can be told from a small sample: by many patches, or by how few codes they use.

        Patches of one image are alike, so that the few codes must be few beside the number of images.
        """
        few = self.perplexity < EVEN * min(self.vocabulary, self.images)
        return few or self.patches >= ENOUGH * self.vocabulary

    def warnings(self) -> list[str]:
        """What is wrong, a sentence of at most 68 characters each; empty for a healthy codebook or too few patches."""
        if not self.judged:
            return []
        size, said = self.vocabulary, []
        if self.dead > DEAD * size:
            said.append(f"{self.dead / size:.0%} of the codes are dead: their rows of the head learn nothing.")
        if self.perplexity < EVEN * size:
            said.append(f"Uneven use: {size} codes do the work of {self.perplexity:.0f}.")
        if self.share > max(MOST, EXCESS / size):
            said.append(f"Code {self.most} is {self.share:.0%} of all patches: predicting it teaches little.")
        return said


def occurrence(tokens: Tensor, vocabulary: int) -> Tensor:
    """In how many images each code occurs: tokens (N, L) → (vocabulary,) int64."""
    ordered = tokens.sort(dim=1).values
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return usage(ordered[first], vocabulary)


def missed(occurrences: Tensor, images: int) -> float:
    """How many codes are in use but occurred in none of the images by chance: at least so many are expected.

    Chao's estimate from the codes that occurred in one image and in two (Biometrics 1987, doi 10.2307/2531532, in
    the bias-corrected form). It counts images, not patches, as patches of one image are alike.

    Args:
        occurrences: (V,) int64, in how many of the ``images`` each code occurred.
        images: at least 1.
    """
    once, twice, never = (int((occurrences == times).sum()) for times in (1, 2, 0))
    return min(never, (images - 1) / images * math.comb(once, 2) / (twice + 1))


class Distortion:
    """How far vectors lie from their codes, over batches; only sums are kept."""

    def __init__(self) -> None:
        self._count, self._squared, self._moment = 0, 0.0, 0.0
        self._shift = self._sum = torch.zeros(())

    def add(self, squared: Tensor, vectors: Tensor) -> None:
        """Squared distances (B, L) of the vectors (B, L, F) to their codes."""
        flat = vectors.flatten(0, 1)
        if not self._count:
            self._shift = flat.mean(dim=0)
            self._sum = torch.zeros(flat.shape[1], dtype=torch.float64)
        ema_update = flat - self._shift  # so that a large common offset does not cost digits
        self._count += len(flat)
        self._sum += ema_update.sum(dim=0).cpu()
        self._moment += float(ema_update.square().sum())
        self._squared += float(squared.sum())

    def result(self) -> tuple[float, float]:
        """The mean squared distance, and its share of the vectors' variance (their distance to one common mean).

        Raises:
            MapetError: values that are not finite.
        """
        distance = self._squared / self._count
        variance = self._moment / self._count - float((self._sum / self._count).square().sum())
        if not math.isfinite(distance + variance):
            raise MapetError("The teacher's features hold NaN or infinity: its weights are broken, bring others.")
        return distance, distance / variance if variance > 0 else 0.0


def nearest_patches(tokens: Tensor, squared: Tensor, code: int, count: int) -> tuple[Tensor, Tensor]:
    """The patches nearest to a code, one an image: rows (n,) of ``tokens`` and places (n,) in them, n ≤ ``count``.

    Args:
        tokens: (N, L) integers.
        squared: (N, L) finite, distances to the patches' own codes.
        code: whose patches are wanted.
        count: how many at most; of equals the first come first.
    """
    own, patch = squared.where(tokens == code, torch.inf).min(dim=1)
    rows = own.argsort(stable=True)[:count]
    rows = rows[own[rows] < torch.inf]
    return rows, patch[rows]
