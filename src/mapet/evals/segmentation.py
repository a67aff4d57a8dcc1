"""Training a segmentation model: the objective, and test images."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mapet.evals.iou import IGNORED, overlap
from mapet.evals.upernet import Segmenter, sliding_logits


class Segmenting(nn.Module):
    """Cross-entropy of the pixels, plus ``auxiliary_weight`` × that of the auxiliary head.

    As in mmsegmentation the mean is over all pixels, of which ignored ones count 0.
    """

    def __init__(self, segmenter: Segmenter, auxiliary_weight: float = 0.4) -> None:
        super().__init__()
        self.segmenter, self.auxiliary_weight = segmenter, auxiliary_weight

    def forward(self, images: Tensor, targets: Tensor, seed: Tensor) -> dict[str, Tensor]:
        """Loss, and the share of labelled pixels that the head names rightly.

        Args:
            images: (B, 3, H, W) float, normalised.
            targets: (B, H, W) int64, -1 for ignored pixels.
            seed: (B,) int64, each sample's random seed of stochastic depth.
        """
        logits, auxiliary = self.segmenter.both(images, seed)
        loss = _cross_entropy(logits, targets)
        if auxiliary is not None:
            loss = loss + self.auxiliary_weight * _cross_entropy(auxiliary, targets)
        known = targets != IGNORED
        right = (logits.argmax(dim=1) == targets) & known
        return {"loss": loss, "accuracy": right.sum() / known.sum().clamp(min=1)}


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="none").mean()


@torch.no_grad()
def segmented(model: Segmenter, image: Tensor, size: tuple[int, int], stride: int | None = None) -> Tensor:
    """Class indices (height, width) int64 of one image (3, H, W): sliding logits, resized to ``size``."""
    logits = sliding_logits(model, image[None], stride)
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)[0].argmax(dim=0)


def counts_of(
    model: Segmenter, pairs: Iterable[tuple[int, Tensor, Tensor]], count: int, device: torch.device, stride: int | None
) -> Tensor:
    """Counts (N, C, 3) of ``iou.overlap``, zero for images that are not among ``pairs`` (index, image, targets).

    Those of several processes can be summed. The model is moved to ``device`` and stays in evaluation mode.
    """
    found = torch.zeros(count, model.num_classes, 3, dtype=torch.int64)
    model.to(device).eval()
    for i, image, target in pairs:
        predicted = segmented(model, image.to(device), (target.shape[0], target.shape[1]), stride)
        found[i] = overlap(predicted.cpu(), target, model.num_classes)
    return found
