"""The linear probe of BEiT (Bao et al., arXiv 2106.08254; its ``run_linear_eval.py``), on features computed once.

A linear layer reads class token and mean of patches after each block, all of them trained side by side by AdamW; the
best layer is the result. The published code picks it by test accuracy, over all epochs too; here a held-out tenth of
the training set picks it, so that the test set is read once.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from mapet.evals.checks import Labelled
from mapet.evals.logistic import tenth
from mapet.evals.score import Score, share, tops
from mapet.evals.sgd import normal, places, train_sgd

EPOCHS = 100
BASE_RATE = 1e-3  # × batch / 256: 4e-3 at BEiT's batch of 1024
WEIGHT_DECAY = 1e-4
LARGEST_BATCH = 1024
START, BATCHES = 4, 5  # salts: independent streams of chance


class Heads(nn.Module):
    """A linear layer for each layer's features, from normal 0.01: (B, layers, F) → (B, layers, classes)."""

    def __init__(self, layers: int, width: int, classes: int, seed: int) -> None:
        super().__init__()
        self.weight = normal((layers, classes, width), 0.01, seed, START)
        self.bias = nn.Parameter(torch.zeros(layers, classes))

    def forward(self, features: Tensor) -> Tensor:
        """Scores of every class from every layer; the features are not standardised."""
        return torch.einsum("blf,lcf->blc", features.float(), self.weight) + self.bias


def best_layer(
    train: Labelled, test: Labelled, classes: int, seed: int, batch: int, device: torch.device
) -> dict[str, Score]:
    """Choose the layer by heads trained on nine tenths of ``train``, then report heads trained on all of it.

    Args:
        train: (N, layers, F) float features and (N,) int64 labels.
        test: (M, layers, F) and (M,).
        classes: number of classes.
        seed: of the held-out tenth, the start and the batches.
        batch: images a step, at most; BEiT's is 1024.
        device: where to train.

    Returns:
        ``top1`` and, with more than five classes, ``top5`` of the chosen layer, the note of which names it; then
        ``layer 1`` and so on, every layer's top-1 accuracy.
    """
    held, kept = tenth(len(train[1]), seed)
    right = places(train_heads(train, kept, classes, seed, batch, device), (train[0][held], train[1][held])) == 0
    chosen = int(right.sum(dim=0).argmax())
    found = places(train_heads(train, torch.arange(len(train[1])), classes, seed, batch, device), test)
    note = f"layer {chosen + 1}, the best of {found.shape[1]} layers on a held-out tenth of the training set"
    scores = {name: replace(score, note=note) for name, score in tops(found[:, chosen], classes).items()}
    layers = (found == 0).sum(dim=0).tolist()
    return scores | {f"layer {number}": share(count, len(found)) for number, count in enumerate(layers, start=1)}


def train_heads(train: Labelled, index: Tensor, classes: int, seed: int, batch: int, device: torch.device) -> Heads:
    """AdamW under a cosine that falls to 0 from epoch to epoch, without warm-up, on the images at ``index``."""
    _, layers, width = train[0].shape
    heads, batch = Heads(layers, width, classes, seed).to(device), min(batch, len(index))
    optimizer = torch.optim.AdamW(heads.parameters(), weight_decay=WEIGHT_DECAY)

    def rate(epoch: float) -> float:
        return BASE_RATE * batch / 256 * 0.5 * (1 + math.cos(math.pi * int(epoch) / EPOCHS))

    train_sgd(heads, optimizer, train, index, epochs=EPOCHS, batch=batch, rate=rate, seed=(seed, BATCHES))
    return heads
