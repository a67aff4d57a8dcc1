"""Accuracies with 95 % confidence intervals, and ranks of the target class."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, sin, sqrt, tan
from statistics import fmean, stdev

import torch
from torch import Tensor

Z = 1.959963984540054  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class Score:
    """``value`` and its interval ``low`` … ``high``, all in [0, 1], from ``count`` test images or repetitions.

    ``note`` adds what the score's name does not say, such as the layer that was chosen.
    """

    value: float
    low: float
    high: float
    count: int
    note: str = ""

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % ({100 * self.low:.1f} – {100 * self.high:.1f})"


def share(correct: int, count: int) -> Score:
    """``correct`` / ``count`` with Wilson's interval (Wilson, JASA 1927, doi 10.1080/01621459.1927.10502953).

    Raises:
        ValueError: unless 0 <= ``correct`` <= ``count`` and ``count`` >= 1.
    """
    if not 0 <= correct <= count or count < 1:
        raise ValueError(f"{correct} correct of {count} is not a share")
    value, spread = correct / count, Z * Z / count
    centre = (value + spread / 2) / (1 + spread)
    reach = sqrt(spread * value * (1 - value) + spread * spread / 4) / (1 + spread)
    return Score(value, max(0.0, centre - reach), min(1.0, centre + reach), count)


def mean(shares: Sequence[float]) -> Score:
    """The mean of repetitions with Student's t-interval, clipped to [0, 1].

    The interval covers only what differs between the repetitions, not the choice of test images that they share.

    Raises:
        ValueError: fewer than two repetitions.
    """
    if len(shares) < 2:
        raise ValueError(f"{len(shares)} repetition has no spread")
    value, reach = fmean(shares), student(len(shares) - 1) * stdev(shares) / sqrt(len(shares))
    return Score(value, max(0.0, value - reach), min(1.0, value + reach), len(shares))


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t of ν = ``freedom``: with t = √ν tan θ, its density is cos^(ν − 1) θ."""
    low, high = 0.0, pi / 2
    wanted = 0.95 * _area(freedom - 1, high)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _area(freedom - 1, middle) < wanted else (low, middle)
    return sqrt(freedom) * tan(low)


def _area(power: int, angle: float) -> float:
    """The integral of cos to the power ``power`` from 0 to ``angle``, by parts."""
    if power < 2:
        return sin(angle) if power else angle
    return (cos(angle) ** (power - 1) * sin(angle) + (power - 1) * _area(power - 2, angle)) / power


def rank_of_target(scores: Tensor, labels: Tensor) -> Tensor:
    """Rank of the target class (0 = top-1).

    Ties are ranked by class index. A target with a NaN score is ranked last.

    Args:
        scores: (N, classes) float.
        labels: (N,) int64, the target classes.

    Returns:
        (N,) int64 in [0, classes).
    """
    target = scores.gather(1, labels[:, None])
    higher_index = torch.arange(scores.shape[1], device=scores.device) > labels[:, None]
    behind = (scores < target) | ((scores == target) & higher_index)
    return scores.shape[1] - 1 - behind.sum(dim=1)


def tops(ranks: Tensor, classes: int) -> dict[str, Score]:
    """``top1`` and, with more than five classes, ``top5`` accuracy from (N,) int64 ranks of the target class."""
    depths = {"top1": 1} if classes <= 5 else {"top1": 1, "top5": 5}
    return {name: share(int((ranks < depth).sum()), len(ranks)) for name, depth in depths.items()}
