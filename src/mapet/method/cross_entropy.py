"""Cross-entropy of a linear head over a large vocabulary, whose scores never exist all at once.

With 8192 tokens they would outweigh all else in a step: for 147 predicted patches of 64 images they are 308 MB in
float32, and as much again their softmax and their gradient. As the loss is a mean, its gradient is known as soon as a
row is scored: rows are scored, graded and forgotten a chunk at a time.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CELLS = {"cpu": 1 << 23, "cuda": 1 << 26}  # scores of one chunk: 32 MiB of float32, or 256 MiB on a GPU


def chunked_cross_entropy(rows: Tensor, head: nn.Linear, target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy in nats, and the share of rows whose target scores highest; both float32 scalars.

    Args:
        rows: (B, M, D), what the head reads.
        head: D → V; under autocast it multiplies in the lower precision, and all after the product is float32.
        target: (B, M) int64 below V.
    """
    scored: tuple[Tensor, Tensor] = _Scored.apply(  # type: ignore[no-untyped-call]
        rows.flatten(0, 1), head.weight, head.bias, target.flatten(), torch.is_grad_enabled()
    )
    return scored


class _Scored(torch.autograd.Function):
    """Rows (N, D), weight (V, D), bias (V,), target (N,) → mean loss, and accuracy without gradient."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, target: Tensor, learning: bool
    ) -> tuple[Tensor, Tensor]:
        size = max(1, CELLS.get(rows.device.type, CELLS["cpu"]) // len(weight))
        loss, hits = rows.new_zeros(2, dtype=torch.float32).unbind()
        by_rows, by_weight, by_bias = (torch.zeros_like(t) for t in (rows, weight, bias))
        chunks = (torch.split(tensor, size) for tensor in (rows, target[:, None], by_rows))
        for part, goal, by_part in zip(*chunks, strict=True):
            scores = F.linear(part, weight, bias).float()
            total = scores.logsumexp(1, keepdim=True)
            loss = loss + (total - scores.gather(1, goal)).sum()
            hits = hits + (scores.argmax(1, keepdim=True) == goal).sum()
            if learning and any(ctx.needs_input_grad):
                error = _error(scores, total, goal).div_(len(rows)).to(weight.dtype)
                by_part.copy_(error @ weight)
                by_weight += error.T @ part
                by_bias += error.sum(0)
        ctx.save_for_backward(by_rows, by_weight, by_bias)
        ctx.mark_non_differentiable(hits := hits / len(rows))
        return loss / len(rows), hits

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return *(grad * upstream for grad in ctx.saved_tensors), None, None


def _error(scores: Tensor, total: Tensor, goal: Tensor) -> Tensor:
    """Gradient of the summed loss: softmax less one-hot target; ``scores`` are used up."""
    return scores.sub_(total).exp_().scatter_add_(1, goal, -torch.ones_like(total))
