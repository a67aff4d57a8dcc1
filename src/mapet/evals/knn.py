"""Weighted k-nearest-neighbour classification of frozen features: nothing is trained."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mapet.evals.checks import Labelled, check
from mapet.evals.features import POOLS
from mapet.evals.score import Score, rank_of_target, tops
from mapet.utils.errors import MapetError

CHUNK = 2**26  # similarities in memory at a time: 256 MiB of float32


def protocol(*, k: int = 20, temperature: float = 0.07, pool: str = "avg") -> str:
    """The name under which these settings are reported."""
    return f"k-NN, k = {k}, T = {temperature:g}, cosine, {POOLS[pool]}"


def knn(train: Labelled, test: Labelled, *, k: int = 20, temperature: float = 0.07, classes: int) -> dict[str, Score]:
    """The k nearest training features vote with weight exp(cosine / T): Wu et al., arXiv 1805.01978, as in DINO.

    Args:
        train: (N, F) float features and (N,) int64 labels.
        test: (M, F) and (M,) on the same device.
        k: neighbours; at most N are used.
        temperature: T of the weights.
        classes: number of classes; labels lie in [0, classes).

    Returns:
        ``top1`` and, with more than five classes, ``top5``. An image whose class has no vote counts as wrong.

    Raises:
        MapetError: k or T not positive, or data that ``check`` refuses.
    """
    if k < 1 or temperature <= 0:
        raise MapetError(f"k-NN needs k of at least 1 and a temperature above 0, got k = {k}, T = {temperature:g}.")
    check(train, test, classes)
    bank, rows = F.normalize(train[0].float(), dim=1), max(1, CHUNK // len(train[0]))
    ranks = []
    for start in range(0, len(test[0]), rows):
        queries, targets = test[0][start : start + rows], test[1][start : start + rows]
        votes = _votes(bank, train[1], queries, min(k, len(bank)), temperature, classes)
        voted = votes.gather(1, targets[:, None])[:, 0] > 0
        ranks.append(rank_of_target(votes, targets).masked_fill(~voted, classes))
    return tops(torch.cat(ranks), classes)


def _votes(bank: Tensor, labels: Tensor, queries: Tensor, k: int, temperature: float, classes: int) -> Tensor:
    """(m, classes) float32 sums of the neighbours' weights, relative to that of the nearest to avoid overflow."""
    similar, neighbours = (F.normalize(queries.float(), dim=1) @ bank.T).topk(k, dim=1)
    weights = ((similar - similar[:, :1]) / temperature).exp()
    return weights.new_zeros(len(queries), classes).scatter_add_(1, labels[neighbours], weights)
