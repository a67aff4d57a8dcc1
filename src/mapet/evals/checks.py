"""Checks of features and labels, shared by all evaluations."""

import torch
from torch import Tensor

from mapet.utils.errors import MapetError

Labelled = tuple[Tensor, Tensor]  # (N, F) or (N, …, F) float features, (N,) int64 labels
CHUNK = 1024  # images checked at a time


def check(train: Labelled, test: Labelled, classes: int) -> None:
    """Refuse data that have no meaningful score.

    Raises:
        MapetError: fewer than two classes; an empty set; labels that are missing, negative or too large; a class
            without a training image; NaN or infinite features.
    """
    if classes < 2:
        raise MapetError(f"The data have {classes} class: give data with at least 2 classes.")
    for name, (features, labels) in {"training": train, "test": test}.items():
        _check_set(name, features, labels, classes)
    missing = (torch.bincount(train[1], minlength=classes) == 0).nonzero().flatten().tolist()
    if missing:
        some = ", ".join(map(str, missing[:5])) + (" …" if len(missing) > 5 else "")
        raise MapetError(
            f"{len(missing)} of {classes} classes have no training image ({some}): use more training images."
        )


def check_batch(batch: int | None) -> None:
    """Refuse a batch without statistics for batch norm.

    Raises:
        MapetError: a batch below 2.
    """
    if batch is not None and batch < 2:
        raise MapetError(f"--batch-size must be >= 2, as batch norm needs statistics, got {batch}.")


def _check_set(name: str, features: Tensor, labels: Tensor, classes: int) -> None:
    if len(features) != len(labels) or not len(labels):
        raise MapetError(
            f"The {name} set has {len(features)} features and {len(labels)} labels: give one label for each."
        )
    if labels.min() < 0:
        count = int((labels < 0).sum())
        raise MapetError(f"{count} of {len(labels)} {name} images have no label: give a labelled data set.")
    if labels.max() >= classes:
        raise MapetError(f"The {name} set has a label {int(labels.max())}, but the data have {classes} classes.")
    broken = sum(int((~part.flatten(1).isfinite().all(dim=1)).sum()) for part in torch.split(features, CHUNK))
    if broken:
        raise MapetError(f"{broken} of {len(features)} {name} features hold NaN or infinity: the encoder is broken.")
