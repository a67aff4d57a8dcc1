"""The linear probe of MAE (He et al., arXiv 2111.06377, appendix A.1), on precomputed features."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mapet.evals.checks import Labelled
from mapet.evals.sgd import normal, train_sgd, warm_cosine

EPOCHS, WARMUP = 90, 10
BASE_RATE = 0.1  # × batch / 256: 6.4 at MAE's batch of 16384
LARGEST_BATCH = 16384
START, BATCHES = 2, 3  # salts of the random seed


class Probe(nn.Module):
    """Batch norm without affine parameters and a linear layer from N(0, 0.01²): (B, F) → (B, classes)."""

    def __init__(self, width: int, classes: int, seed: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.weight = normal((classes, width), 0.01, seed, START)
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) → (B, classes) logits."""
        return F.linear(self.norm(features), self.weight, self.bias)


def train_probe(train: Labelled, classes: int, seed: int, batch: int, device: torch.device) -> Probe:
    """LARS with momentum 0.9 and no weight decay; the last incomplete batch of each epoch is dropped, as in MAE.

    Args:
        train: (N, F) float32 features and (N,) int64 labels.
        classes: number of classes.
        seed: random seed of the initial weights and the batches.
        batch: images per step, at most N.
        device: where to train.
    """
    from timm.optim import Lars

    probe = Probe(train[0].shape[1], classes, seed).to(device)
    optimizer = Lars([{"params": [probe.weight], "always_adapt": True}, {"params": [probe.bias]}], momentum=0.9)

    def rate(epoch: float) -> float:
        return BASE_RATE * batch / 256 * warm_cosine(epoch, WARMUP, EPOCHS)

    index = torch.arange(len(train[1]))
    train_sgd(probe, optimizer, train, index, epochs=EPOCHS, batch=batch, rate=rate, seed=(seed, BATCHES))
    return probe
