"""Fine-tuning: the training objective, and the accuracy of the classifier on test images."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mapet.evals.score import rank_of_target
from mapet.method.encoder import Classifier


class FineTuning(nn.Module):
    """A classifier with soft-target cross-entropy: the objective of fine-tuning."""

    def __init__(self, classifier: Classifier) -> None:
        from timm.loss import SoftTargetCrossEntropy

        super().__init__()
        self.classifier, self.criterion = classifier, SoftTargetCrossEntropy()

    def forward(self, images: Tensor, targets: Tensor, seed: Tensor) -> dict[str, Tensor]:
        """Loss and accuracy; the target of a mixed image is its class of the largest weight.

        Args:
            images: (B, 3, H, W) float, normalised.
            targets: (B, classes) float, rows that sum to 1.
            seed: (B,) int64, each sample's random seed of stochastic depth.
        """
        logits = self.classifier(images, seed).float()
        correct = logits.argmax(dim=1) == targets.argmax(dim=1)
        return {"loss": self.criterion(logits, targets), "accuracy": correct.float().mean()}


@torch.no_grad()
def rank_histogram(classifier: Classifier, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> Tensor:
    """Number of images for each rank of the target class: (1 + classes,) int64 on ``device``.

    Entry 0 counts top-1. Histograms of several processes can be summed; ``ranks_from_histogram`` reads the sum.

    Args:
        classifier: is moved to ``device`` and stays in eval mode.
        batches: normalised float images (B, 3, H, W) and int64 labels (B,).
        device: where to compute, in float32.
    """
    counts = torch.zeros(1 + classifier.num_classes, dtype=torch.int64, device=device)
    classifier.to(device).eval()
    for images, labels in batches:
        ranks = rank_of_target(classifier(images.to(device, non_blocking=True)), labels.to(device))
        counts += ranks.bincount(minlength=len(counts))
    return counts


def ranks_from_histogram(counts: Tensor) -> Tensor:
    """``rank_histogram`` → (N,) int64, one rank per image, ascending: the input of ``score.tops``."""
    return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
