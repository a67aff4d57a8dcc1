"""Linear classification of frozen features under a named protocol."""

from collections.abc import Callable

import torch
from torch import Tensor

from mapet.errors import MapetError, nearest
from mapet.evals import logistic, mae_probe
from mapet.evals.checks import Labelled, check
from mapet.evals.score import Score, place, tops

PROTOCOLS = {
    "quick": "linear, logistic regression by L-BFGS, penalty chosen on a held-out tenth",
    "mae": "linear, MAE's 90 epochs of LARS after batch norm, features of one view",
}
LARGEST_BATCH = 16384  # MAE's


def linear(
    train: Labelled,
    test: Labelled,
    *,
    classes: int,
    protocol: str = "quick",
    seed: int = 0,
    batch: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Score]:
    """Train a linear classifier on ``train`` and score it on ``test``. The scale of the features is irrelevant.

    Both protocols standardise the features by the training set's mean and deviation first.

    ``"quick"`` minimises cross-entropy with an L2 penalty to convergence, the penalty chosen on a held-out tenth of
    ``train``. No step size, no epochs; all features and (N, classes) scores are held at once.

    ``"mae"`` is the linear probe of MAE (arXiv 2111.06377, appendix A.1): batch norm without affine parameters, linear
    layer, LARS with rate 0.1 × batch / 256, 90 epochs, 10 of them warm-up, cosine to 0. As features are computed once,
    of the centre view, MAE's random crops and flips are absent. Made for ImageNet: how far LARS moves the weights grows
    with N whatever the batch, so with fewer than some 50,000 pictures the probe stays under-trained.

    Args:
        train: (N, F) float features and (N,) int64 labels.
        test: (M, F) and (M,) on the same device.
        classes: number of classes; labels lie in [0, classes).
        protocol: a key of ``PROTOCOLS``.
        seed: of the held-out tenth, or of the start and the batches.
        batch: pictures a step of ``"mae"``, at most N; by default min(16384, N).
        progress: called with the share of the work done, up to 1.

    Returns:
        ``top1`` and, with more than five classes, ``top5``.

    Raises:
        MapetError: an unknown protocol, a batch below 2, or sets that ``check`` refuses.
    """
    if protocol not in PROTOCOLS:
        raise MapetError(f'There is no linear protocol "{protocol}".{nearest(protocol, PROTOCOLS)}')
    if batch is not None and batch < 2:
        raise MapetError(f"A batch of {batch} has no statistics for batch norm: use at least 2.")
    check(train, test, classes)
    (features, queries), labels = standardised(train[0], test[0]), train[1]
    report = progress or (lambda share: None)
    with torch.enable_grad():
        if protocol == "quick":
            weights = logistic.fit_chosen(features, labels, classes, seed, report)
            scores = logistic.scores(queries, weights)
        else:
            size = min(batch or LARGEST_BATCH, len(features))
            scores = mae_probe.train_probe(features, labels, classes, seed, size, report)(queries)
    return tops(place(scores, test[1]), classes)


def standardised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets as float32, minus ``train``'s mean, over its deviation; zero where ``train`` does not vary."""
    deviation, mean = torch.std_mean(train.double(), dim=0, correction=0)
    factor = torch.where(deviation > 1e-6 * mean.abs(), 1 / deviation, 0)
    return ((train - mean) * factor).float(), ((test - mean) * factor).float()
