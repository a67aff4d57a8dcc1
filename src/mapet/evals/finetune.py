"""Fine-tuning: what is minimised, and how well the classifier tells the test images apart."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mapet.evals.score import place
from mapet.method.encoder import Classifier


class FineTuning(nn.Module):
    """A classifier under the cross-entropy with soft targets: the objective of fine-tuning."""

    def __init__(self, classifier: Classifier) -> None:
        from timm.loss import SoftTargetCrossEntropy

        super().__init__()
        self.classifier, self.criterion = classifier, SoftTargetCrossEntropy()

    def forward(self, images: Tensor, targets: Tensor, seed: Tensor) -> dict[str, Tensor]:
        """Loss and accuracy, which counts the heaviest class of a mixed image.

        Args:
            images: (B, 3, H, W) float, normalised.
            targets: (B, classes) float, rows that sum to 1.
            key: (B,) int64, each sample's own seed for stochastic depth.
        """
        logits = self.classifier(images, seed).float()
        right = logits.argmax(dim=1) == targets.argmax(dim=1)
        return {"loss": self.criterion(logits, targets), "accuracy": right.float().mean()}


@torch.no_grad()
def rank_histogram(classifier: Classifier, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> Tensor:
    """How many images there are by the standing of their right class: (1 + classes,) int64 on ``device``.

    Entry 0 counts the images whose right class is ranked first. Such counts add up over processes; ``placed``
    reads them.

    Args:
        classifier: is moved to ``device`` and left in eval mode.
        batches: normalised float images (B, 3, H, W) and int64 labels (B,).
        device: where to compute, in float32.
    """
    counts = torch.zeros(1 + classifier.num_classes, dtype=torch.int64, device=device)
    classifier.to(device).eval()
    for images, labels in batches:
        found = place(classifier(images.to(device, non_blocking=True)), labels.to(device))
        counts += found.bincount(minlength=len(counts))
    return counts


def placed(counts: Tensor) -> Tensor:
    """``rank_histogram`` → (N,) int64, one standing an image, ascending: what ``score.tops`` takes."""
    return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
