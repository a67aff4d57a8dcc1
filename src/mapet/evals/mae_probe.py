"""The linear probe of MAE (He et al., arXiv 2111.06377, appendix A.1), on features that are computed once."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mapet.hashing import fraction, hashed

EPOCHS, WARMUP = 90, 10
BASE_RATE = 0.1  # × batch / 256: 6.4 at MAE's batch of 16384
START, BATCHES = 2, 3  # salts: independent streams of chance


class Probe(nn.Module):
    """Batch norm without affine parameters and a linear layer from normal 0.01: (B, F) → (B, classes)."""

    def __init__(self, width: int, classes: int, seed: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        chance = fraction(seed, START, torch.arange(classes * width)).clamp(min=2.0**-54)
        normal = torch.special.ndtri(chance).float().view(classes, width)
        self.weight = nn.Parameter(0.01 * normal)
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, features: Tensor) -> Tensor:
        """Scores of every class."""
        return F.linear(self.norm(features), self.weight, self.bias)


def train_probe(
    features: Tensor, labels: Tensor, classes: int, seed: int, batch: int, report: Callable[[float], None]
) -> Probe:
    """LARS with momentum 0.9 and no weight decay; what does not fill an epoch's last batch is left out, as in MAE.

    Args:
        features: (N, F) float32.
        labels: (N,) int64.
        classes: number of classes.
        seed: of the start and the batches.
        batch: pictures a step, at most N.
        report: called with the share of the work done.
    """
    from timm.optim import Lars

    probe = Probe(features.shape[1], classes, seed).to(features.device)
    groups = [{"params": [probe.weight], "always_adapt": True}, {"params": [probe.bias]}]
    optimizer = Lars(groups, momentum=0.9)
    steps = len(features) // batch
    index = torch.arange(len(features), device=features.device)
    for epoch in range(EPOCHS):
        chance = hashed(seed, BATCHES, epoch, index).argsort()
        for step, rows in enumerate(chance[: steps * batch].view(steps, batch)):
            for group in optimizer.param_groups:
                group["lr"] = BASE_RATE * batch / 256 * warm_cosine(epoch + step / steps)
            optimizer.zero_grad()
            F.cross_entropy(probe(features[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        report((epoch + 1) / EPOCHS)
    return probe.eval()


def warm_cosine(epoch: float) -> float:
    """The factor of the learning rate: linear from 0 to 1 over the warm-up, then half a cosine down to 0."""
    if epoch < WARMUP:
        return epoch / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (epoch - WARMUP) / (EPOCHS - WARMUP)))
