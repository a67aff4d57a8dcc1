"""LayerScale, and the cheap way to apply it. Legend: B images, R rows, D width."""

import torch
from torch import Tensor, nn

from mapet.utils.linear import linear


class LayerScale(nn.Module):
    """Learned factor per channel (Touvron et al., arXiv 2103.17239)."""

    def __init__(self, dim: int, init_values: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init_values))

    def forward(self, rows: Tensor) -> Tensor:
        """(B, R, D) → (B, R, D)."""
        return rows * self.gamma


def scaled(layer: nn.Linear, rows: Tensor, scale: nn.Module | None) -> Tensor:
    """``scale(layer(rows))``: the factors of a ``LayerScale`` multiply the weights, of which there are fewer."""
    if isinstance(scale, LayerScale):
        return linear(rows, scale.gamma[:, None] * layer.weight, scale.gamma * layer.bias)
    return layer(rows)
