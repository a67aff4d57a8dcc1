"""Multinomial logistic regression by L-BFGS, with an L2 penalty chosen on held-out images."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mapet.utils.rng import random_bits

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
HELD_OUT = 1  # salt of the random seed


def fit_chosen(features: Tensor, labels: Tensor, classes: int, seed: int) -> Tensor:
    """Fit nine tenths with each of ``PENALTIES``, then all with the one of the lowest loss on the held-out tenth.

    Args:
        features: (N, F) float.
        labels: (N,) int64.
        classes: number of classes.
        seed: random seed of the held-out tenth.

    Returns:
        (classes, F + 1); the last column is the bias.
    """
    held, kept = hold_out_tenth(len(labels), seed)
    losses = []
    for penalty in PENALTIES:
        weights = fit(features[kept], labels[kept], classes, penalty)
        losses.append(float(F.cross_entropy(scores(features[held], weights), labels[held])))
    return fit(features, labels, classes, PENALTIES[losses.index(min(losses))])


def hold_out_tenth(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of a random tenth of ``count`` images, at least one, and of the rest: both (…,) int64."""
    held, kept = random_bits(seed, HELD_OUT, torch.arange(count)).argsort().tensor_split([max(1, count // 10)])
    return held, kept


def fit(features: Tensor, labels: Tensor, classes: int, penalty: float) -> Tensor:
    """Minimise mean cross-entropy + penalty / 2 · |weights|² by L-BFGS; the bias has no penalty.

    Args:
        features: (N, F) float.
        labels: (N,) int64.
        classes: number of classes.
        penalty: > 0, so that a minimum exists, unique up to a constant in the bias.

    Returns:
        (classes, F + 1); the last column is the bias.
    """
    basis = _preconditioner(features, classes, penalty)
    inputs = features @ basis
    parameters = features.new_zeros(classes, features.shape[1] + 1, requires_grad=True)
    solver = torch.optim.LBFGS([parameters], max_iter=100, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        squares = (parameters[:, :-1] @ basis.T).square().sum()
        value = F.cross_entropy(scores(inputs, parameters), labels) + penalty / 2 * squares
        value.backward()  # type: ignore[no-untyped-call]
        return value

    solver.step(loss)  # type: ignore[no-untyped-call]
    return torch.cat([parameters[:, :-1] @ basis.T, parameters[:, -1:]], dim=1).detach()


def _preconditioner(features: Tensor, classes: int, penalty: float) -> Tensor:
    """(F, F) change of basis that makes the curvature of the loss similar in all directions: fewer steps."""
    values, basis = torch.linalg.eigh(features.T @ features / len(features))
    curvature = values.clamp(min=0) / classes + penalty
    return basis / curvature.sqrt()


def scores(features: Tensor, weights: Tensor) -> Tensor:
    """(N, F) features, (classes, F + 1) weights → (N, classes) logits."""
    return F.linear(features, weights[:, :-1], weights[:, -1])
