"""Products with weights by the faster of torch's two libraries for a CPU.

torch multiplies float32 matrices by MKL, which on AMD's processors reaches three quarters of the speed of oneDNN, also
a part of torch (``benchmarks/README.md``).

Legend: B images, R rows, M = B · R, D inputs, V outputs.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mapet.utils.processor import has_slow_mkl

SLOW_MKL = has_slow_mkl()  # at import, as torch.compile cannot follow a look at the processor
SMALLEST = 1 << 24  # multiplications of a product; of smaller ones, both take as long
MANY_ROWS = 1024  # with fewer, autograd's copy of a gradient that is a transpose takes longer than the product saves


class Linear(nn.Linear):
    """``torch.nn.Linear``, computed by ``linear``."""

    def forward(self, rows: Tensor) -> Tensor:
        """(…, D) → (…, V)."""
        return linear(rows, self.weight, self.bias)


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``: rows (…, D), weight (V, D), bias (V,) → (…, V)."""
    if _by_onednn(rows, weight, len(weight)):
        return _product(rows, weight, bias)
    return F.linear(rows, weight, bias)


def grad_rows(grad: Tensor, weight: Tensor) -> Tensor:
    """Gradient (M, D) of the inputs from that of the outputs, (M, V), and the weight (V, D)."""
    return _product(grad, weight.T) if _by_onednn(grad, weight, weight.shape[1]) else grad @ weight


def grad_weight(grad: Tensor, rows: Tensor) -> Tensor:
    """Gradient (V, D) of the weight from that of the outputs, (M, V), and the inputs (M, D)."""
    if not _by_onednn(grad, rows, rows.shape[1]):
        return grad.T @ rows
    if grad.shape[1] > rows.shape[1] and len(rows) >= MANY_ROWS:  # oneDNN is faster with more columns than rows
        return _product(rows.T, grad.T).T
    return _product(grad.T, rows.T)


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` by oneDNN, with gradients of any order."""
    return _Linear.apply(rows, weight, bias)  # type: ignore[no-untyped-call]


class _Linear(torch.autograd.Function):
    """``F.linear`` by oneDNN."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return _onednn(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        flat, of_rows, of_weight, of_bias = grad.flatten(0, -2), None, None, None
        if ctx.needs_input_grad[0]:
            of_rows = grad_rows(flat, weight).view_as(rows)
        if ctx.needs_input_grad[1]:
            of_weight = grad_weight(flat, rows.flatten(0, -2))
        if ctx.needs_input_grad[2]:
            of_bias = flat.sum(0)
        return of_rows, of_weight, of_bias


def _onednn(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` by oneDNN, without gradients."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return product


def _by_onednn(rows: Tensor, factor: Tensor, columns: int) -> bool:
    """Whether oneDNN is faster for the product of ``rows`` and a factor of so many columns, and can be used."""
    return (
        SLOW_MKL
        and rows.device.type == "cpu"
        and rows.dtype is factor.dtype is torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_exporting()
        and rows.numel() * columns >= SMALLEST  # last: an exported program has any number of images
    )
