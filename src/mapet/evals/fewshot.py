"""Few-shot classification: logistic regression on a few labelled images of each class, over several draws."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mapet.evals import logistic
from mapet.evals.checks import Labelled, check
from mapet.evals.linear import standardised
from mapet.evals.score import Score, mean, rank_of_target
from mapet.utils.errors import MapetError
from mapet.utils.rng import random_bits

SHOTS = (1, 5, 10)
DRAWS = 5
PENALTY = 0.01  # on the weights of features of mean square length 1
DRAW = 8  # salt of the random seed


def protocol(*, draws: int = DRAWS) -> str:
    """The name under which these settings are reported."""
    return f"few-shot, logistic regression, L2 penalty {PENALTY:g}, top-1, mean and 95 % t-interval over {draws} draws"


def fewshot(
    train: Labelled,
    test: Labelled,
    *,
    classes: int,
    shots: Sequence[int] = SHOTS,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Score]:
    """Fit logistic regression to ``shots`` labelled images of each class and score it on all of ``test``.

    Features are standardised by the mean and deviation of all of ``train`` (labels are not used) and divided by √F.
    The penalty is fixed, as one image per class leaves none to choose it by. The images of a draw with fewer shots are
    a subset of those of the same draw with more.

    Args:
        train: (N, F) float features and (N,) int64 labels, to draw from.
        test: (M, F) and (M,) on the same device.
        classes: number of classes; labels lie in [0, classes).
        shots: labelled images of each class, one result for each.
        draws: repetitions.
        seed: random seed of the draws.

    Returns:
        ``1-shot`` and so on: top-1 accuracy, the mean over the draws with its t-interval. The interval covers
        the choice of labelled images only; all draws share the test images.

    Raises:
        MapetError: no shots or one below 1, fewer than two draws, a class with fewer images than shots, or data
            that ``check`` refuses.
    """
    check_settings(shots, draws)
    check(train, test, classes)
    counts = torch.bincount(train[1], minlength=classes)
    if counts.min() < max(shots):
        raise MapetError(
            f"Class {int(counts.argmin())} has {int(counts.min())} training images, fewer than {max(shots)} shots: "
            "use fewer shots or more training images."
        )
    x_train, x_test = (part / part.shape[1] ** 0.5 for part in standardised(train[0], test[0]))
    scores = {}
    for count in shots:
        rows = [drawn(train[1], classes, count, seed, draw) for draw in range(draws)]
        accuracies = [_accuracy((x_train[r], train[1][r]), (x_test, test[1]), classes) for r in rows]
        scores[f"{count}-shot"] = mean(accuracies)
    return scores


def check_settings(shots: Sequence[int], draws: int) -> None:
    """Check the settings.

    Raises:
        MapetError: no shots or one below 1, or fewer than two draws.
    """
    if not shots or min(shots) < 1:
        raise MapetError(f"--shots must be >= 1, got {list(shots)}.")
    if draws < 2:
        raise MapetError(f"--draws must be >= 2, as one draw has no interval, got {draws}.")


def drawn(labels: Tensor, classes: int, count: int, seed: int, draw: int) -> Tensor:
    """(classes × count,) int64 ascending: the ``count`` images of each class that draw number ``draw`` takes."""
    index = torch.arange(len(labels), device=labels.device)
    order = random_bits(seed, DRAW, draw, index).argsort()
    return torch.cat([order[labels[order] == label][:count] for label in range(classes)]).sort().values


def _accuracy(train: Labelled, test: Labelled, classes: int) -> float:
    with torch.enable_grad():
        weights = logistic.fit(*train, classes, PENALTY)
    return float((rank_of_target(logistic.scores(test[0], weights), test[1]) == 0).double().mean())
