"""Scores of a classifier on images of some of its classes, its calibration, and errors under corruption."""

from collections.abc import Mapping, Sequence
from statistics import fmean

import torch
from torch import Tensor

from mapet.evals.score import rank_of_target
from mapet.utils.errors import MapetError

BINS = 15
Errors = Mapping[str, Sequence[float]]  # for each corruption, the shares of wrong images by strength


def best_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Rank of the best-ranked correct class (0 = top-1), ties as in ``rank_of_target``.

    Args:
        scores: (N, classes) float.
        labels: (N, M) int64, M correct classes of each image; fewer are given by repetition.

    Returns:
        (N,) int64 in [0, classes).
    """
    return torch.stack([rank_of_target(scores, column) for column in labels.unbind(dim=1)]).amin(dim=0)


def calibration_error(confidence: Tensor, correct: Tensor, bins: int = BINS) -> float:
    """Expected calibration error (Guo et al., arXiv 1706.04599), in [0, 1].

    The mean over images of |accuracy − mean confidence| of their bin; bins are (0, 1 / bins], (1 / bins, 2 / bins] ….

    Args:
        confidence: (N,) float, the probability of each image's most probable class.
        correct: (N,) bool, whether that class is right.
        bins: number of equal bins.

    Raises:
        ValueError: no images.
    """
    if not len(confidence):
        raise ValueError("no images")
    values = confidence.double()
    index = ((values * bins).ceil().long() - 1).clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, index, correct.double() - values)
    return float(gap.abs().sum() / len(values))


def mean_corruption_error(errors: Errors) -> float:
    """The mean over corruptions of the mean error over strengths, in [0, 1]."""
    return fmean(fmean(values) for values in errors.values())


def against(errors: Errors, clean: float, base: Errors, base_clean: float) -> tuple[float, float | None]:
    """Mean and relative mean corruption error against a baseline (Hendrycks and Dietterich, arXiv 1903.12261).

    For each corruption, errors summed over strengths are divided by the baseline's; the relative ones are what
    exceeds the error on clean images. The relative one is None if the baseline loses nothing under some corruption.

    Raises:
        MapetError: other corruptions or strengths than the baseline's, or a baseline without errors.
    """
    if {name: len(values) for name, values in errors.items()} != {name: len(values) for name, values in base.items()}:
        raise MapetError("--baseline has other corruptions or strengths: measure both with the same.")
    if not all(map(sum, base.values())):
        raise MapetError("--baseline makes no error under some corruption, so nothing can be divided by it: remove it.")
    ratio = fmean(sum(errors[name]) / sum(base[name]) for name in errors)
    lost = {name: sum(value - base_clean for value in values) for name, values in base.items()}
    if min(lost.values()) <= 0:
        return ratio, None
    return ratio, fmean(sum(value - clean for value in errors[name]) / lost[name] for name in errors)
