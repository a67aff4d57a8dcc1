"""Training a segmentation model: the objective, and test images."""

from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor, nn
from torch.nn import functional as F

from mapet.data.augment import normalize, to_float
from mapet.evals.iou import IGNORED, overlap
from mapet.evals.upernet import Segmenter, sliding_logits

RESIZED = 2**24  # logits that are resized to an image at a time


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
    """Class indices (height, width) int64 of one image (3, H, W): the largest sliding logit, resized to ``size``.

    Some classes are resized at a time, so that the memory does not grow with their number.
    """
    logits = sliding_logits(model, image[None], stride)
    best = torch.full(size, -torch.inf, device=logits.device)
    found = torch.zeros(size, dtype=torch.int64, device=logits.device)
    part = max(1, RESIZED // (size[0] * size[1]))
    for first in range(0, model.num_classes, part):
        resized = F.interpolate(logits[:, first : first + part], size, mode="bilinear", align_corners=False)[0]
        value, index = resized.max(dim=0)
        found = torch.where(value > best, index + first, found)
        best = torch.maximum(best, value)
    return found


def shown(image: Image.Image, model: Segmenter) -> Tensor:
    """What the model sees of an RGB image in a test: (3, H, W), normalised, with a shorter side of one window.

    The longer side is at most four windows.
    """
    window = min(model.img_size)
    scale = min(window / min(image.size), 4 * window / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    pixels = torch.from_numpy(np.array(image.resize(size, Resampling.BILINEAR)))
    return normalize(to_float(pixels.permute(2, 0, 1)[None]))[0]


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
