"""Code updates of VQ-KD: a moving average of the features assigned to each code, and restarts of dead codes.

Pure functions of one step's features. Sums are float64 and features are chosen by random keys of their own, so
micro-batches and processes change the result by rounding only.
Legend: N features, C their width, K codes.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mapet.utils.rng import randint

Reduce = Callable[[Tensor, str], Tensor]  # (tensor, "sum" or "min") → the same over all processes


def no_reduce(tensor: Tensor, operation: str) -> Tensor:
    """The ``Reduce`` of a single process."""
    return tensor


def sum_by_code(unit: Tensor, tokens: Tensor, codes: int) -> Tensor:
    """Per code, the sum of the unit features (N, C) assigned to it, then their count: (K, C + 1) float64."""
    table = unit.new_zeros(codes, unit.shape[1] + 1, dtype=torch.float64)
    table[:, :-1].index_add_(0, tokens, unit.double())
    table[:, -1] = torch.bincount(tokens, minlength=codes)
    return table


def ema_update(codes: Tensor, usage: Tensor, table: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """Updated codes (K, C) and usage (K,), from the ``table`` of ``sum_by_code``.

    A code with features becomes normalize(decay · code + (1 − decay) · normalize(mean of its features)); the others
    stay. Usage is the moving average of the counts.
    """
    sums, counts = table[:, :-1], table[:, -1]
    codes = normalize(decay * codes.double() + (1 - decay) * normalize(sums)).float()  # an empty sum is 0
    return codes, (decay * usage + (1 - decay) * counts).float()


def draw_features(unit: Tensor, keys: Tensor, codes: int, reduce: Reduce) -> tuple[Tensor, Tensor]:
    """Draw a different feature of (N, C) for each code: (K, C), and whether there is one (K,) bool.

    The random key (N,) int64 of a feature determines the code for which it is a candidate; of a code's candidates, the
    one with the smallest key is drawn.
    """
    code, none = randint(codes, keys), torch.iinfo(torch.int64).max
    smallest = torch.full((codes,), none, device=unit.device).scatter_reduce(0, code, keys, "amin")
    smallest = reduce(smallest, "min")
    drawn = (keys == smallest[code])[:, None]
    found = unit.new_zeros(codes, unit.shape[1]).index_add_(0, code, unit * drawn)
    return reduce(found, "sum"), smallest < none
