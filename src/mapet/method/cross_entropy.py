"""Cross-entropy of a linear head over a large vocabulary, in chunks, without storing all logits.

With 8192 tokens, the logits of 147 masked patches of 64 images take 308 MB in float32, and so do their softmax and
their gradient. As the loss is a mean, the gradient of a row is known as soon as its logits are: the forward pass
computes logits, loss and gradients chunk by chunk, and frees the logits of each chunk.

Legend: N rows, D width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mapet.utils.linear import grad_rows, grad_weight, linear

CHUNK_LOGITS = {"cpu": 1 << 23, "cuda": 1 << 26}  # logits per chunk: 32 MiB of float32, or 256 MiB on a GPU


def chunked_cross_entropy(rows: Tensor, head: nn.Linear, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy in nats, and the top-1 accuracy; both are float32 scalars.

    Args:
        rows: (B, M, D), the inputs of the head.
        head: D → V; autocast applies to its product, everything after it is float32.
        target: (B, M) int64 below V.
    """
    loss_and_accuracy: tuple[Tensor, Tensor] = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        rows.flatten(0, 1), head.weight, head.bias, target.flatten(), torch.is_grad_enabled()
    )
    return loss_and_accuracy


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Rows (N, D), weight (V, D), bias (V,), target (N,) → mean loss, and accuracy without gradient."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, target: Tensor, grad_enabled: bool
    ) -> tuple[Tensor, Tensor]:
        size = max(1, CHUNK_LOGITS.get(rows.device.type, CHUNK_LOGITS["cpu"]) // len(weight))
        loss, hits = rows.new_zeros(2, dtype=torch.float32).unbind()
        grad_input, grad_head, grad_bias = (torch.zeros_like(t) for t in (rows, weight, bias))
        chunks = (torch.split(tensor, size) for tensor in (rows, target[:, None], grad_input))
        for chunk, chunk_target, grad_chunk in zip(*chunks, strict=True):
            logits = linear(chunk, weight, bias).float()
            logsumexp = logits.logsumexp(1, keepdim=True)
            loss = loss + (logsumexp - logits.gather(1, chunk_target)).sum()
            hits = hits + (logits.max(1, keepdim=True).indices == chunk_target).sum()  # faster than argmax on CPUs
            if grad_enabled and any(ctx.needs_input_grad):
                grad_logits = _grad_logits(logits, logsumexp, chunk_target).div_(len(rows)).to(weight.dtype)
                grad_chunk.copy_(grad_rows(grad_logits, weight))
                grad_head += grad_weight(grad_logits, chunk)
                grad_bias += grad_logits.sum(0)
        ctx.save_for_backward(grad_input, grad_head, grad_bias)
        ctx.mark_non_differentiable(accuracy := hits / len(rows))
        return loss / len(rows), accuracy

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return *(grad * grad_loss for grad in ctx.saved_tensors), None, None


def _grad_logits(logits: Tensor, logsumexp: Tensor, target: Tensor) -> Tensor:
    """Gradient of the summed loss: softmax minus one-hot target; overwrites ``logits``."""
    return logits.sub_(logsumexp).exp_().scatter_add_(1, target, -torch.ones_like(logsumexp))
