"""Attention by windows: each row of a pattern reads one contiguous range of keys, so most of a mask is not needed.

Rows with equal windows attend to them without a mask; the others are cut into a few bands, in which windows differ
little, so that each band computes few scores that its mask removes. For MaPeT (see ``pattern.py``) that is a plain
attention of 1 + L rows over 1 + L keys, and a sliding window of M − 1 keys' content rows and queries, which share
their windows. Equal to the masked attention up to rounding.

Legend: B images, N heads, E channels per head, R rows, Q ≤ R rows that are computed, K ≤ R rows that are read.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BANDS = 2  # parts of the rows whose windows differ; measured in benchmarks/README.md
SHARED = 8  # rows with equal windows become a band of their own from here on


class Visible(nn.Module):
    """Which rows read which: as a mask, and as bands for ``attend``.

    Args:
        mask: (R, K) bool, row i reads row j.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.keys = mask.shape[1]
        self.register_buffer("mask", mask, persistent=False)
        self.ranges: list[tuple[list[tuple[int, int]], tuple[int, int]]] = []
        for rows in _bands(mask):
            read = mask[rows].any(dim=0).nonzero().flatten()
            keys = int(read[0]), int(read[-1]) + 1
            part = mask[rows, keys[0] : keys[1]]
            bias = None if part.all() else torch.zeros(part.shape, device=mask.device).masked_fill(~part, -torch.inf)
            self.register_buffer(f"bias_{len(self.ranges)}", bias, persistent=False)
            self.ranges.append((_ranges(rows), keys))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, start: int) -> Tensor:
        """Attention of the rows from ``start`` on, (B, N, Q, E); ``k`` and ``v`` are (B, N, K, E)."""
        q_parts = _Pieces(q, [(low - start, high - start) for rows, _ in self.ranges for low, high in rows])
        k_parts, v_parts = (_Pieces(rows, [keys for _, keys in self.ranges]) for rows in (k, v))
        found: list[tuple[int, Tensor]] = []
        for number, (rows, keys) in enumerate(self.ranges):
            kept = [(max(low - start, 0), high - start) for low, high in rows if high > start]
            if not kept:
                continue
            sizes = [high - low for low, high in kept]
            bias = getattr(self, f"bias_{number}")
            q_part = torch.cat([piece for one in kept for piece in q_parts[one]], dim=2)
            k_part, v_part = (torch.cat(parts[keys], dim=2) for parts in (k_parts, v_parts))
            out = by_products(q_part, k_part, v_part, None if bias is None else bias[-sum(sizes) :])
            found += zip([low for low, _ in kept], torch.split(out, sizes, dim=2), strict=True)
        return torch.cat([part for _, part in sorted(found, key=lambda part: part[0])], dim=2)


class _Pieces:
    """Rows (B, N, R, E), split once at the ends of all ranges: gradients of overlapping slices would each be padded."""

    def __init__(self, rows: Tensor, ranges: list[tuple[int, int]]) -> None:
        inside = {edge for one in ranges for edge in one if 0 < edge < rows.shape[2]}
        self.edges = [0, *sorted(inside), rows.shape[2]]
        self.pieces = torch.split(rows, [high - low for low, high in pairwise(self.edges)], dim=2)

    def __getitem__(self, one: tuple[int, int]) -> list[Tensor]:
        """The pieces that make up a range."""
        return list(self.pieces[self.edges.index(one[0]) : self.edges.index(one[1])])


Seen = Visible | Tensor | None  # None: every row reads every row; a tensor: an (R, K) bool mask alone


def readable(rows: Tensor, visible: Seen) -> Tensor:
    """The rows that are read, (B, R, D) → (B, K, D); a split, as the gradient of a slice would be padded with zeros."""
    if visible is None:
        return rows
    keys = visible.keys if isinstance(visible, Visible) else visible.shape[1]
    return torch.split(rows, [keys, rows.shape[1] - keys], dim=1)[0].contiguous()


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Seen, start: int) -> Tensor:
    """Attention by the fastest way that was measured for this device and precision.

    Args:
        q: (B, N, Q, E), the rows from ``start`` on.
        k, v: (B, N, K, E).
        visible: None: every row reads every key; a tensor: the (R, K) bool mask alone.
        start: first row that is computed.

    Returns:
        (B, N, Q, E).
    """
    # On CPUs the backward pass of the fused kernel makes no use of the matrix unit for bfloat16.
    mask_only = isinstance(visible, Tensor)
    if q.dtype is torch.bfloat16 and q.device.type == "cpu" and q.requires_grad and not mask_only:
        return visible.attend(q, k, v, start) if isinstance(visible, Visible) else by_products(q, k, v)
    mask = visible.mask if isinstance(visible, Visible) else visible
    mask = None if mask is None else mask[start:]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def by_products(q: Tensor, k: Tensor, v: Tensor, bias_QK: Tensor | None = None) -> Tensor:
    """Attention as products and a softmax, (B, N, Q, E) by (B, N, K, E); the scores are kept for the backward pass."""
    bias = q.new_zeros(1, 1, 1) if bias_QK is None else bias_QK.to(q.dtype)[None]
    batch_q, batch_k, batch_v = (rows.flatten(0, 1) for rows in (q, k, v))
    beta = 0 if bias_QK is None else 1
    scores = torch.baddbmm(bias, batch_q, batch_k.transpose(1, 2), beta=beta, alpha=q.shape[-1] ** -0.5)
    return torch.bmm(scores.softmax(dim=-1), batch_v).view(*q.shape[:3], -1)


def _bands(mask: Tensor) -> Iterator[Tensor]:
    """Yield sorted rows: those with equal windows together, the others in parts with similar windows."""
    windows, of_row, counts = torch.unique(mask, dim=0, return_inverse=True, return_counts=True)
    for window in range(len(windows)):
        if counts[window] >= SHARED:
            yield (of_row == window).nonzero().flatten()
    first_key = mask.int().argmax(dim=1)
    others = (counts[of_row] < SHARED).nonzero().flatten()
    if len(others):
        by_key = others[first_key[others].argsort(stable=True)]
        for part in by_key.tensor_split(min(BANDS, len(by_key))):
            yield part.sort().values


def _ranges(rows: Tensor) -> list[tuple[int, int]]:
    """Sorted rows as ranges (first, last + 1)."""
    gaps = ((rows[1:] - rows[:-1]) > 1).nonzero().flatten() + 1
    edges = [0, *gaps.tolist(), len(rows)]
    return [(int(rows[low]), int(rows[high - 1]) + 1) for low, high in pairwise(edges)]
