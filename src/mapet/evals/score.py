"""A share of right answers with its 95 % interval."""

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

Z = 1.959963984540054  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class Score:
    """``value`` and its interval ``low`` … ``high``, all in [0, 1], from ``count`` answers."""

    value: float
    low: float
    high: float
    count: int

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
