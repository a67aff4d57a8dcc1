"""The linear probe of BEiT (Bao et al., arXiv 2106.08254; its ``run_linear_eval.py``), on precomputed features.

For each block a linear layer reads class token and mean of patches; AdamW trains all of them together, and the best
layer is the result. The published code selects layer and epoch by test accuracy; here the layer is selected on a
held-out tenth of the training set, so that the test set is read once.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from mapet.evals.checks import Labelled
from mapet.evals.logistic import hold_out_tenth
from mapet.evals.score import Score, share, tops
from mapet.evals.sgd import normal, target_ranks, train_sgd

EPOCHS = 100
BASE_RATE = 1e-3  # × batch / 256: 4e-3 at BEiT's batch of 1024
WEIGHT_DECAY = 1e-4
LARGEST_BATCH = 1024
START, BATCHES = 4, 5  # salts of the random seed


class Heads(nn.Module):
    """A linear layer for each layer's features, from N(0, 0.01²): (B, layers, F) → (B, layers, classes)."""

    def __init__(self, layers: int, width: int, classes: int, seed: int) -> None:
        super().__init__()
        self.weight = normal((layers, classes, width), 0.01, seed, START)
        self.bias = nn.Parameter(torch.zeros(layers, classes))

    def forward(self, features: Tensor) -> Tensor:
        """(B, layers, F) → (B, layers, classes) logits; the features are not standardised."""
        return torch.einsum("blf,lcf->blc", features.float(), self.weight) + self.bias


def best_layer(
    train: Labelled, test: Labelled, classes: int, seed: int, batch: int, device: torch.device
) -> dict[str, Score]:
    """Select the layer with heads trained on nine tenths of ``train``, then report heads trained on all of it.

    Args:
        train: (N, layers, F) float features and (N,) int64 labels.
        test: (M, layers, F) and (M,).
        classes: number of classes.
        seed: random seed of the held-out tenth, the initial weights and the batches.
        batch: images per step, at most; BEiT's is 1024.
        device: where to train.

    Returns:
        ``top1`` and, with more than five classes, ``top5`` of the selected layer, which the note names; then
        ``layer 1`` and so on, every layer's top-1 accuracy.
    """
    held, kept = hold_out_tenth(len(train[1]), seed)
    held_out = (train[0][held], train[1][held])
    correct = target_ranks(train_heads(train, kept, classes, seed, batch, device), held_out) == 0
    best = int(correct.sum(dim=0).argmax())
    ranks = target_ranks(train_heads(train, torch.arange(len(train[1])), classes, seed, batch, device), test)
    note = f"layer {best + 1}, the best of {ranks.shape[1]} layers on a held-out tenth of the training set"
    scores = {name: replace(score, note=note) for name, score in tops(ranks[:, best], classes).items()}
    layers = (ranks == 0).sum(dim=0).tolist()
    return scores | {f"layer {number}": share(count, len(ranks)) for number, count in enumerate(layers, start=1)}


def train_heads(train: Labelled, index: Tensor, classes: int, seed: int, batch: int, device: torch.device) -> Heads:
    """AdamW without warm-up, with a cosine that falls to 0 once per epoch, on the images at ``index``."""
    _, layers, width = train[0].shape
    heads, batch = Heads(layers, width, classes, seed).to(device), min(batch, len(index))
    optimizer = torch.optim.AdamW(heads.parameters(), weight_decay=WEIGHT_DECAY)

    def rate(epoch: float) -> float:
        return BASE_RATE * batch / 256 * 0.5 * (1 + math.cos(math.pi * int(epoch) / EPOCHS))

    train_sgd(heads, optimizer, train, index, epochs=EPOCHS, batch=batch, rate=rate, seed=(seed, BATCHES))
    return heads
