"""Attentive probing of CAE (Chen et al., arXiv 2202.03026), on precomputed patches."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mapet.evals.checks import Labelled, check, check_batch
from mapet.evals.score import Score, tops
from mapet.evals.sgd import normal, target_ranks, train_sgd, warm_cosine

PROTOCOL = "attentive, CAE's cross-attention block, batch norm and 90 epochs of SGD, patches of one view"
EPOCHS, WARMUP = 90, 10
RATE = 0.4 / 8192  # × batch
LARGEST_BATCH = 1024
CHANNELS = 64  # per head
START, BATCHES = 6, 7  # salts of the random seed


class AttentiveProbe(nn.Module):
    """One learned query attends to the patches; batch norm without affine parameters and a linear layer follow.

    CAE's block for a single query, the same for all images. Head h scores patch x by q · W_k x = (W_kᵀ q) · x and
    reads W_v Σ a x, so no patch is projected: 2 L D H products instead of 2 L D². Key, value and projection have no
    bias, as softmax and batch norm would cancel it.

    Args:
        width: D of the patches.
        heads: H, a divisor of D.
        classes: number of classes.
        seed: random seed of the initial weights: N(0, 0.02²), the linear layer N(0, 0.01²), the query 0.
    """

    def __init__(self, width: int, heads: int, classes: int, seed: int) -> None:
        super().__init__()
        square, split = (width, width), (heads, width // heads, width)
        self.query_token = nn.Parameter(torch.zeros(width))
        self.norm_q = nn.LayerNorm(width, eps=1e-6)
        self.q_weight, self.q_bias = normal(square, 0.02, seed, START, 0), nn.Parameter(torch.zeros(width))
        self.k_weight, self.v_weight = normal(split, 0.02, seed, START, 1), normal(split, 0.02, seed, START, 2)
        self.norm_k, self.norm_v = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))
        self.proj = normal(square, 0.02, seed, START, 3)
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.head_weight, self.head_bias = (
            normal((classes, width), 0.01, seed, START, 4),
            nn.Parameter(torch.zeros(classes)),
        )

    def forward(self, patches: Tensor) -> Tensor:
        """(B, L, D) float of any precision → (B, classes)."""
        normed = F.layer_norm(patches.float(), patches.shape[-1:], eps=1e-6)
        heads, channels, _ = self.k_weight.shape
        query = F.linear(self.norm_q(self.query_token), self.q_weight, self.q_bias).view(heads, channels)
        reader = torch.einsum("hc,hcd->hd", query * channels**-0.5, self.k_weight) * self.norm_k
        weights = (reader @ normed.transpose(1, 2)).softmax(dim=-1)
        read = torch.einsum("bhd,hcd->bhc", weights @ normed * self.norm_v, self.v_weight)
        return F.linear(self.norm(F.linear(read.flatten(1), self.proj)), self.head_weight, self.head_bias)


def attentive(
    train: Labelled,
    test: Labelled,
    *,
    classes: int,
    seed: int = 0,
    batch: int | None = None,
    device: torch.device | None = None,
) -> dict[str, Score]:
    """Train CAE's attentive probe on the patches of ``train`` and score it on ``test``.

    SGD with momentum 0.9 and no weight decay, rate 0.4 × batch / 8192, 90 epochs, 10 of them warm-up, cosine to 0. CAE
    uses batches of 8192, random crops and flips, and also reads the class token. A head has 64 channels, as in ViT-B
    and ViT-L.

    Args:
        train: (N, L, D) float patches and (N,) int64 labels.
        test: (M, L, D) and (M,).
        classes: number of classes; labels lie in [0, classes).
        seed: random seed of the initial weights and the batches.
        batch: images per step, at most N; by default min(1024, N).
        device: where to train; by default on the patches' device.

    Returns:
        ``top1`` and, with more than five classes, ``top5``.

    Raises:
        MapetError: a batch below 2, or data that ``check`` refuses.
    """
    check_batch(batch)
    check(train, test, classes)
    size = min(batch or LARGEST_BATCH, len(train[1]))
    with torch.enable_grad():
        probe = train_probe(train, classes, seed, size, device or train[0].device)
    return tops(target_ranks(probe, test), classes)


def train_probe(train: Labelled, classes: int, seed: int, batch: int, device: torch.device) -> AttentiveProbe:
    """The trained probe in eval mode; the last incomplete batch of each epoch is dropped, as in CAE."""
    width = train[0].shape[2]
    heads = next(heads for heads in range(max(1, width // CHANNELS), 0, -1) if width % heads == 0)
    probe = AttentiveProbe(width, heads, classes, seed).to(device)
    optimizer = torch.optim.SGD(probe.parameters(), momentum=0.9)

    def rate(epoch: float) -> float:
        return RATE * batch * warm_cosine(epoch, WARMUP, EPOCHS)

    index = torch.arange(len(train[1]))
    train_sgd(probe, optimizer, train, index, epochs=EPOCHS, batch=batch, rate=rate, seed=(seed, BATCHES))
    return probe
