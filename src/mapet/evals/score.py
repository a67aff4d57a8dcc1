"""A share of right answers with its 95 % interval."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, sin, sqrt, tan
from statistics import fmean, stdev

import torch
from torch import Tensor

Z = 1.959963984540054  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class Score:
    """``value`` and its interval ``low`` … ``high``, all in [0, 1], from ``count`` answers or repetitions.

    ``note`` says what the value's name leaves open, such as which layer was chosen.
    """

    value: float
    low: float
    high: float
    count: int
    note: str = ""

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % ({100 * self.low:.1f} – {100 * self.high:.1f})"


def share(correct: int, count: int) -> Score:
    """``correct`` of ``count`` with Wilson's interval (Wilson, JASA 1927, doi 10.1080/01621459.1927.10502953).

    Raises:
        ValueError: no answers, or more correct ones than answers.
    """
    if not 0 <= correct <= count or count < 1:
        raise ValueError(f"{correct} correct of {count} is no share")
    value, spread = correct / count, Z * Z / count
    centre = (value + spread / 2) / (1 + spread)
    reach = sqrt(spread * value * (1 - value) + spread * spread / 4) / (1 + spread)
    return Score(value, max(0.0, centre - reach), min(1.0, centre + reach), count)


def mean(shares: Sequence[float]) -> Score:
    """The mean of repetitions with Student's interval, cut to [0, 1]: where the mean of very many would lie.

    It tells of what changed between the repetitions alone; test images that they share have no part in it.

    Raises:
        ValueError: fewer than two repetitions, which have no spread.
    """
    if len(shares) < 2:
        raise ValueError(f"{len(shares)} repetition has no spread")
    value, reach = fmean(shares), student(len(shares) - 1) * stdev(shares) / sqrt(len(shares))
    return Score(value, max(0.0, value - reach), min(1.0, value + reach), len(shares))


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t: with t = √ν tan θ, its density over θ is cos θ to the power ν − 1."""
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


def place(scores: Tensor, labels: Tensor) -> Tensor:
    """(N, classes) float, (N,) int64 → (N,) int64: how many classes stand before the right one, 0 = it is the best.

    Equal scores stand in the order of their classes; a score that is not a number stands last.
    """
    own = scores.gather(1, labels[:, None])
    later = torch.arange(scores.shape[1], device=scores.device) > labels[:, None]
    behind = (scores < own) | ((scores == own) & later)
    return scores.shape[1] - 1 - behind.sum(dim=1)


def tops(places: Tensor, classes: int) -> dict[str, Score]:
    """``top1`` and, with more than five classes, ``top5`` from the (N,) int64 ``places`` of the right answers."""
    ranks = {"top1": 1} if classes <= 5 else {"top1": 1, "top5": 5}
    return {name: share(int((places < rank).sum()), len(places)) for name, rank in ranks.items()}
