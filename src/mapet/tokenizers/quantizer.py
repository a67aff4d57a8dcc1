"""How the codes of VQ-KD move: a moving average of the features that chose them, and new places for dead ones.

Pure functions of one step's features. Sums are kept in float64 and features are chosen by their own keys, so neither
the parts nor the processes over which a batch is spread change the result, beyond rounding.
Legend: N features, C their width, K codes.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mapet.utils.rng import randint

Reduce = Callable[[Tensor, str], Tensor]  # (tensor, "sum" or "min") → the same over all processes


def alone(tensor: Tensor, operation: str) -> Tensor:
    """The ``Reduce`` of a single process."""
    return tensor


def sum_by_code(unit: Tensor, tokens: Tensor, codes: int) -> Tensor:
    """Per code the sum of the unit features (N, C) that chose it, then their number: (K, C + 1) float64."""
    table = unit.new_zeros(codes, unit.shape[1] + 1, dtype=torch.float64)
    table[:, :-1].index_add_(0, tokens, unit.double())
    table[:, -1] = torch.bincount(tokens, minlength=codes)
    return table


def ema_update(codes: Tensor, usage: Tensor, table: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """Codes (K, C) and usage (K,) after a step whose features are ``sum_by_code``'s ``table``.

    A chosen code becomes the direction of decay · code + (1 − decay) · direction of its features' mean; the others
    stay. Usage is the moving average of the counts.
    """
    sums, counts = table[:, :-1], table[:, -1]
    codes = normalize(decay * codes.double() + (1 - decay) * normalize(sums)).float()  # a sum of none is 0
    return codes, (decay * usage + (1 - decay) * counts).float()


def drawn(unit: Tensor, keys: Tensor, codes: int, reduce: Reduce) -> tuple[Tensor, Tensor]:
    """For each code one of the features (N, C), all different: (K, C), and whether there is one (K,) bool.

    A feature's key (N,) int64 names the one code that it is a candidate for; the candidate with the least key is it.
    """
    place, none = randint(codes, keys), torch.iinfo(torch.int64).max
    least = torch.full((codes,), none, device=unit.device).scatter_reduce(0, place, keys, "amin")
    least = reduce(least, "min")
    chosen = (keys == least[place])[:, None]
    found = unit.new_zeros(codes, unit.shape[1]).index_add_(0, place, unit * chosen)
    return reduce(found, "sum"), least < none
