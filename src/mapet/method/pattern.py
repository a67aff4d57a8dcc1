"""Attention patterns: which row of the transformer reads which, for every objective, by one rule.

Sort the positions of each image by its order (``order.py``), CLS first. A transformer whose position embeddings are
added to its rows is permutation-equivariant, so sorting changes no result, and the attention mask of every objective
becomes one constant matrix for all images.

CLS and the context patches have time 0; the masked patches are revealed in groups 1, 2, …; the *time* of a position is
its group. The transformer runs over three kinds of rows, each with a *clock*:

    content      the patch itself              clock = its time
    placeholder  mask token + position         clock = 0
    query        mask token + position         clock = its time − 1, never read by other rows

Rule: a row with clock c reads, for every position, its freshest row no later than c: the content if time ≤ c, else the
placeholder (if the objective has placeholders). Nothing leaks, by induction over layers: a row only reads rows whose
clock is at most its own.

                                                                                   rows for L = 196, m = 147
    MIM    reveal(L, [m], fill=True)        all masked patches at once (BEiT, arXiv 2106.08254)               197
    PeT    reveal(L, [1] * m, fill=False)   one at a time, later positions unknown (XLNet, arXiv 1906.08237)  343
    MaPeT  reveal(L, [1] * m, fill=True)    one at a time, all positions known (arXiv 2306.07346, section 3)  489

Rows that no prediction needs are not computed: the content of the last group, and the queries of the first group, which
equal its placeholders and serve as both.

The rows are sorted so that each reads one contiguous window: content of masked patches, latest first; the context;
placeholders, latest first; queries. For MaPeT every window is 1 + L rows wide.

Legend: L patches, M masked patches, R rows, K ≤ R rows that are read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Pattern:
    """Rows and their attention mask. Rows that are read come first, rows that predict last; the two may overlap.

    Attributes:
        position_in_order: (R,) int64, each row's index in the order: 0 = CLS, up to L.
        is_masked: (R,) bool, True where a row starts from the mask token instead of its patch.
        visible: (R, R) bool, row i reads row j.
        predict: (M,) int64, the rows that predict a token, by index in the order: always the last M.
        length: number of patches L.
    """

    position_in_order: Tensor
    is_masked: Tensor
    visible: Tensor
    predict: Tensor
    length: int

    @property
    def rows(self) -> int:
        """R, the number of rows computed per image."""
        return len(self.position_in_order)

    @property
    def keys(self) -> int:
        """K ≤ R: only the first K rows are read."""
        return int(self.visible.any(dim=0).sum())

    @property
    def context(self) -> int:
        """1 + L − M: number of given positions, CLS included."""
        return 1 + self.length - len(self.predict)

    def __str__(self) -> str:
        """Draw the mask: one line per row, one column per readable row; ■ read, · not read; ▶ marks predicting rows."""
        first = self.rows - len(self.predict)
        names = [
            f"{'?' if is_masked else ' '}{position_in_order}"
            for is_masked, position_in_order in zip(self.is_masked, self.position_in_order, strict=True)
        ]
        width = max(map(len, names))
        lines = [" " * (width + 2) + " ".join(name.rjust(width) for name in names[: self.keys])]
        for row, name in enumerate(names):
            marks = ("■" if is_read else "·" for is_read in self.visible[row, : self.keys])
            arrow = "▶" if row >= first else " "
            lines.append(f"{arrow}{name.rjust(width)} " + " ".join(mark.rjust(width) for mark in marks))
        return "\n".join(lines)


def reveal(length: int, groups: Sequence[int], fill: bool) -> Pattern:
    """Return the pattern that predicts the last ``sum(groups)`` positions of the order, one group after another.

    Args:
        length: number of patches L.
        groups: number of patches revealed at each step, each ≥ 1, with a sum ≤ L.
        fill: add placeholders, so that the positions of all masked patches are known from the start.

    Raises:
        ValueError: ``groups`` is empty, has an entry < 1, or sums to more than ``length``.
    """
    if not groups or min(groups) < 1 or sum(groups) > length:
        raise ValueError(f"groups must be positive and sum to 1 … {length} patches, got {list(groups)}")
    time, index = _times(length, groups), torch.arange(1 + length)
    first, later = index[time == 1], index[time > 1]
    content = torch.cat([index[(time > 0) & (time < len(groups))].flip(0), index[time == 0]])
    placeholders = later.flip(0) if fill else later[:0]
    position_in_order = torch.cat([content, placeholders, first, later])
    clock = torch.cat([time[content], torch.zeros_like(placeholders), time[first] - 1, time[later] - 1])
    rows = torch.arange(len(position_in_order))
    is_masked = rows >= len(content)
    visible = _freshest(time[position_in_order], clock, is_masked)
    num_keys = len(content) + (len(placeholders) + len(first) if fill else 0)
    visible[:, num_keys:] = False
    return Pattern(position_in_order, is_masked, visible, rows[-sum(groups) :], length)


def _times(length: int, groups: Sequence[int]) -> Tensor:
    """(1 + L,) the time of each index in the order; 0 for CLS and the context."""
    counts = torch.tensor([1 + length - sum(groups), *groups])
    return torch.repeat_interleave(torch.arange(len(counts)), counts)


def _freshest(time: Tensor, clock: Tensor, is_masked: Tensor) -> Tensor:
    """(R, R) bool, the rule: row i reads the content of j's position if its time ≤ i's clock, else its placeholder."""
    is_revealed = time[None, :] <= clock[:, None]
    return is_revealed ^ is_masked[None, :]


def mim(length: int, num_masked: int) -> Pattern:
    """Masked image modeling as in BEiT: ``num_masked`` of ``length`` patches predicted at once."""
    return reveal(length, [num_masked], fill=True)


def pet(length: int, num_masked: int) -> Pattern:
    """Permuted prediction alone: each patch from the context and the masked patches before it in the order."""
    return reveal(length, [1] * num_masked, fill=False)


def mapet(length: int, num_masked: int) -> Pattern:
    """Masked and permuted prediction (arXiv 2306.07346): as ``pet``, with the positions of all masked patches known."""
    return reveal(length, [1] * num_masked, fill=True)
