"""Multinomial logistic regression to convergence, its penalty chosen by itself."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mapet.utils.rng import random_bits

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
HELD_OUT = 1  # salt: its own stream of chance


def fit_chosen(features: Tensor, labels: Tensor, classes: int, seed: int) -> Tensor:
    """Fit nine tenths under each of ``PENALTIES``, then all under the one with the lowest loss on the held-out tenth.

    Args:
        features: (N, F) float.
        labels: (N,) int64.
        classes: number of classes.
        seed: of the held-out tenth.

    Returns:
        (classes, F + 1), the last column being the bias.
    """
    held, kept = tenth(len(labels), seed)
    losses = []
    for penalty in PENALTIES:
        weights = fit(features[kept], labels[kept], classes, penalty)
        losses.append(float(F.cross_entropy(scores(features[held], weights), labels[held])))
    return fit(features, labels, classes, PENALTIES[losses.index(min(losses))])


def tenth(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """The places of a held-out tenth of ``count`` images, at least one, and of the rest: both (…,) int64."""
    held, kept = random_bits(seed, HELD_OUT, torch.arange(count)).argsort().tensor_split([max(1, count // 10)])
    return held, kept


def fit(features: Tensor, labels: Tensor, classes: int, penalty: float) -> Tensor:
    """The minimum of mean cross-entropy + penalty / 2 · |weights|², the bias free, by L-BFGS.

    Args:
        features: (N, F) float.
        labels: (N,) int64.
        classes: number of classes.
        penalty: above 0, so that the minimum exists and is unique but for a constant in the bias.

    Returns:
        (classes, F + 1), the last column being the bias.
    """
    change = _evener(features, classes, penalty)
    eased = features @ change
    ema_update = features.new_zeros(classes, features.shape[1] + 1, requires_grad=True)
    solver = torch.optim.LBFGS([ema_update], max_iter=100, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        squares = (ema_update[:, :-1] @ change.T).square().sum()
        value = F.cross_entropy(scores(eased, ema_update), labels) + penalty / 2 * squares
        value.backward()  # type: ignore[no-untyped-call]
        return value

    solver.step(loss)  # type: ignore[no-untyped-call]
    return torch.cat([ema_update[:, :-1] @ change.T, ema_update[:, -1:]], dim=1).detach()


def _evener(features: Tensor, classes: int, penalty: float) -> Tensor:
    """(F, F) change of coordinates after which the loss curves about alike in all directions, so that few steps do."""
    values, basis = torch.linalg.eigh(features.T @ features / len(features))
    curvature = values.clamp(min=0) / classes + penalty
    return basis / curvature.sqrt()


def scores(features: Tensor, weights: Tensor) -> Tensor:
    """(N, F), (classes, F + 1) → (N, classes)."""
    return F.linear(features, weights[:, :-1], weights[:, -1])
