"""Training by gradient steps, shared by the probes: steps, initial weights, learning rate and predictions."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mapet.evals.score import rank_of_target
from mapet.utils.rng import random_bits, uniform

CHUNK = 1024  # images classified at a time


def train_sgd(
    probe: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: tuple[Tensor, Tensor],
    index: Tensor,
    *,
    epochs: int,
    batch: int,
    rate: Callable[[float], float],
    seed: tuple[int, int],
) -> None:
    """Minimise the cross-entropy of ``probe``, summed over its heads, on its device; leave it in eval mode.

    Args:
        probe: (B, …) features → (B, classes) scores, or (B, heads, classes).
        optimizer: over its parameters.
        data: (N, …) float features and (N,) int64 labels, on any device.
        index: (M,) int64, the images to train on.
        epochs: passes over them; the last incomplete batch of each is dropped.
        batch: images per step, at most M.
        rate: completed epochs, with a fraction → learning rate.
        seed: random seed of each epoch's order.
    """
    (features, labels), device = data, next(probe.parameters()).device
    steps = len(index) // batch
    probe.train()
    for epoch in range(epochs):
        order = index[random_bits(*seed, epoch, index).argsort()]
        for step, rows in enumerate(order[: steps * batch].view(steps, batch)):
            for group in optimizer.param_groups:
                group["lr"] = rate(epoch + step / steps)
            optimizer.zero_grad()
            loss(probe(features[rows].to(device)), labels[rows].to(device)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    probe.eval()


def loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of (B, classes) or (B, heads, classes) scores: the mean over images, the sum over heads."""
    heads = scores[0].numel() // scores.shape[-1]
    return heads * F.cross_entropy(scores.flatten(0, -2), labels.repeat_interleave(heads))


@torch.no_grad()
def target_ranks(probe: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    """(N,) or (N, heads) int64 on the CPU: the rank of each image's target class (0 = top-1), for each head."""
    device, ranks = next(probe.parameters()).device, []
    for features, labels in zip(*(torch.split(part, CHUNK) for part in data), strict=True):
        scores = probe(features.to(device)).cpu()
        targets = labels.cpu().repeat_interleave(scores[0].numel() // scores.shape[-1])
        ranks.append(rank_of_target(scores.flatten(0, -2), targets).view(scores.shape[:-1]))
    return torch.cat(ranks)


def normal(shape: tuple[int, ...], deviation: float, *seed: int) -> nn.Parameter:
    """A parameter from N(0, deviation²): a pure function of the seed."""
    quantiles = uniform(*seed, torch.arange(math.prod(shape))).clamp(min=2.0**-54)
    return nn.Parameter(deviation * torch.special.ndtri(quantiles).float().view(shape))


def warm_cosine(epoch: float, warmup: int, epochs: int) -> float:
    """Factor of the learning rate: linear warm-up from 0 to 1, then half a cosine down to 0."""
    if epoch < warmup:
        return epoch / warmup
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))
