"""Intersection over union (IoU) of predicted and true masks, over all pixels of a split, with intervals over images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mapet.evals.score import Score

IGNORED = -1  # target of pixels that are not counted
RESAMPLES = 1000  # of the test images, for the intervals


def overlap(predicted: Tensor, target: Tensor, classes: int) -> Tensor:
    """Counts of one image by torchmetrics' confusion matrix.

    Args:
        predicted: (H, W) int64 class indices.
        target: (H, W) int64 class indices, or -1 for ignored pixels.
        classes: number of classes.

    Returns:
        (classes, 3) int64: pixels of the class in both, in either, and in the target.
    """
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    matrix = multiclass_confusion_matrix(predicted, target, classes, ignore_index=IGNORED, validate_args=False)
    both, true = matrix.diagonal(), matrix.sum(dim=1)
    return torch.stack([both, true + matrix.sum(dim=0) - both, true], dim=1)


def iou_scores(counts: Tensor, classes: Sequence[str]) -> dict[str, Score]:
    """Scores from the counts (N, classes, 3) of N images, summed over the images as in ADE20K's benchmark.

    The intervals are 95 % bootstrap intervals over the images.

    Returns:
        ``mIoU``, the mean over the classes that some mask or prediction has; ``accuracy`` of pixels; and the IoU of
        each such class as ``IoU NAME``.
    """
    generator = torch.Generator().manual_seed(0)
    picked = torch.randint(len(counts), (RESAMPLES, len(counts)), generator=generator)
    weights = torch.zeros(RESAMPLES, len(counts)).scatter_add_(1, picked, torch.ones(picked.shape))
    whole, drawn = _rates(counts.sum(dim=0)[None]), _rates(weights.double() @ counts.double().flatten(1))
    names = ["mIoU", "accuracy", *(f"IoU {name}" for name in classes)]
    low, high = torch.nanquantile(drawn, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    rows = zip(names, whole[0].tolist(), low.tolist(), high.tolist(), strict=True)
    return {name: Score(value, below, above, len(counts)) for name, value, below, above in rows if value == value}


def _rates(sums: Tensor) -> Tensor:
    """Sums of counts (R, classes, 3) → (R, 2 + classes) float64: mIoU, accuracy and IoU; NaN for absent classes."""
    both, either, true = sums.double().view(len(sums), -1, 3).unbind(dim=2)
    iou = both / either
    return torch.cat([iou.nanmean(1, keepdim=True), (both.sum(1) / true.sum(1))[:, None], iou], dim=1)
