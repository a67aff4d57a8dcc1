"""Linear classification of frozen features under a named protocol."""

import torch
from torch import Tensor

from mapet.evals import beit_probe, logistic, mae_probe
from mapet.evals.checks import Labelled, check, check_batch
from mapet.evals.score import Score, rank_of_target, tops
from mapet.evals.sgd import target_ranks
from mapet.utils.errors import MapetError, nearest

PROTOCOLS = {
    "quick": "linear, logistic regression by L-BFGS, penalty chosen on a held-out tenth",
    "mae": "linear, MAE's 90 epochs of LARS after batch norm, features of one view",
    "beit": "linear, BEiT's 100 epochs of AdamW on every layer, best of all layers, features of one view",
}
LARGEST_BATCH = {"mae": mae_probe.LARGEST_BATCH, "beit": beit_probe.LARGEST_BATCH}


def linear(
    train: Labelled,
    test: Labelled,
    *,
    classes: int,
    protocol: str = "quick",
    seed: int = 0,
    batch: int | None = None,
    device: torch.device | None = None,
) -> dict[str, Score]:
    """Train a linear classifier on ``train`` and score it on ``test``.

    ``"quick"`` and ``"mae"`` first standardise the features by the training set's mean and standard deviation.

    ``"quick"`` minimises cross-entropy with an L2 penalty to convergence, the penalty chosen on a held-out tenth of
    ``train``. It has no step size and no epochs, and holds all features and (N, classes) logits in memory.

    ``"mae"`` is the linear probe of MAE (arXiv 2111.06377, appendix A.1): batch norm without affine parameters, linear
    layer, LARS with rate 0.1 × batch / 256, 90 epochs, 10 of them warm-up, cosine to 0. As features are computed once,
    of the centre view, MAE's random crops and flips are absent; MAE reads the class token, and stops ViT-L and larger
    at 50 epochs. Made for ImageNet: how far LARS moves the weights grows
    with N whatever the batch, so with fewer than some 50,000 images the probe stays under-trained.

    ``"beit"`` is the linear probe of BEiT: class token beside mean of patches after every block, as they are, a linear
    layer on each, AdamW with rate 4e-3 × batch / 1024 and weight decay 1e-4, 100 epochs, cosine to 0. The best layer is
    chosen on a held-out tenth of ``train``; the published code chooses layer and epoch by test accuracy. BEiT's random
    crops and flips are absent.

    Args:
        train: (N, F) float features, or (N, layers, F) for ``"beit"``, and (N,) int64 labels.
        test: the same of M images, on the same device.
        classes: number of classes; labels lie in [0, classes).
        protocol: a key of ``PROTOCOLS``.
        seed: random seed of the held-out tenth, the initial weights and the batches.
        batch: images per step of ``"mae"`` and ``"beit"``, at most N; by default min(16384, N) and min(1024, N).
        device: where ``"mae"`` and ``"beit"`` train; by default on the features' device.

    Returns:
        ``top1`` and, with more than five classes, ``top5``; from ``"beit"`` also ``layer 1`` and so on.

    Raises:
        MapetError: an unknown protocol, a batch below 2, features of another shape, or data that ``check`` refuses.
    """
    if protocol not in PROTOCOLS:
        raise MapetError(f'There is no linear protocol "{protocol}".{nearest(protocol, PROTOCOLS)}')
    check_batch(batch)
    if train[0].ndim != (3 if protocol == "beit" else 2):
        raise MapetError(
            f"The {protocol} protocol cannot read features of shape {tuple(train[0].shape)}: "
            'use pool "layers" for beit, and one vector per image for the others.'
        )
    check(train, test, classes)
    with torch.enable_grad():
        if protocol == "quick":
            return _quick(train, test, classes, seed)
        size, device = min(batch or LARGEST_BATCH[protocol], len(train[1])), device or train[0].device
        if protocol == "beit":
            return beit_probe.best_layer(train, test, classes, seed, size, device)
        x_train, x_test = standardised(train[0], test[0])
        probe = mae_probe.train_probe((x_train, train[1]), classes, seed, size, device)
    return tops(target_ranks(probe, (x_test, test[1])), classes)


def _quick(train: Labelled, test: Labelled, classes: int, seed: int) -> dict[str, Score]:
    x_train, x_test = standardised(train[0], test[0])
    weights = logistic.fit_chosen(x_train, train[1], classes, seed)
    return tops(rank_of_target(logistic.scores(x_test, weights), test[1]), classes)


def standardised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets as float32, standardised by ``train``'s mean and deviation; 0 for features constant in ``train``."""
    deviation, mean = torch.std_mean(train.double(), dim=0, correction=0)
    factor = torch.where(deviation > 1e-6 * mean.abs(), 1 / deviation, 0)
    return ((train - mean) * factor).float(), ((test - mean) * factor).float()
