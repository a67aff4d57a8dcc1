"""Patterns: which row of the transformer may read which, for every objective, by one rule.

Sort each image's positions by its order. Give CLS and the context time 0 and reveal the rest in groups 1, 2, …; a
position's *time* is its group. The transformer runs over three kinds of rows, each with a *clock*:

    content      the patch itself              clock = its time
    placeholder  mask token + position         clock = 0
    query        mask token + position         clock = its time − 1, read by nobody else

Rule: a row with clock c reads, for every position, its freshest row no later than c: the content if time ≤ c, else the
placeholder (if the objective has placeholders). As rows stand in the order's sequence, the matrix is one constant for
all images. Nothing leaks, by induction over layers: a row only reads rows whose clock is at most its own.

    MIM    reveal(L, [m], fill=True)        all hidden patches at once (BEiT)
    PeT    reveal(L, [1] * m, fill=False)   one at a time, nothing known ahead (XLNet)
    MaPeT  reveal(L, [1] * m, fill=True)    one at a time, every position known ahead (arXiv 2306.07346, section 3)

Rows that nobody needs are left out: content of the last group, and the first group's queries, which equal its
placeholders and serve as both.

Rows stand in a sequence that makes what each of them reads one unbroken window: revealed content, latest first; the
context; placeholders, latest first; queries. For MaPeT every window is 1 + L rows wide.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Pattern:
    """Rows and who reads whom. The readable rows come first, the predicted ones last; the two may overlap.

    Attributes:
        position_in_order: (R,) int64, each row's place in the order: 0 = CLS, up to L.
        is_masked: (R,) bool, true where a row starts from the mask token instead of its patch.
        visible: (R, R) bool, row i may read row j.
        predict: (M,) int64, the rows that predict a token, in the order's sequence: always the last M.
        length: number of patches L.
    """

    position_in_order: Tensor
    is_masked: Tensor
    visible: Tensor
    predict: Tensor
    length: int

    @property
    def rows(self) -> int:
        """R, the rows that the transformer computes for one image."""
        return len(self.position_in_order)

    @property
    def keys(self) -> int:
        """K ≤ R: only the first K rows are read by anyone."""
        return int(self.visible.any(dim=0).sum())

    @property
    def context(self) -> int:
        """Places of the order that are given, CLS included: 1 + L − M."""
        return 1 + self.length - len(self.predict)

    def __str__(self) -> str:
        """A drawing: one line a row, one column a readable row; ■ read, · not; ▶ marks rows that predict."""
        first = self.rows - len(self.predict)
        names = [
            f"{'?' if is_masked else ' '}{position_in_order}"
            for is_masked, position_in_order in zip(self.is_masked, self.position_in_order, strict=True)
        ]
        width = max(map(len, names))
        lines = [" " * (width + 2) + " ".join(name.rjust(width) for name in names[: self.keys])]
        for row, name in enumerate(names):
            marks = ("■" if seen else "·" for seen in self.visible[row, : self.keys])
            arrow = "▶" if row >= first else " "
            lines.append(f"{arrow}{name.rjust(width)} " + " ".join(mark.rjust(width) for mark in marks))
        return "\n".join(lines)


def reveal(length: int, groups: Sequence[int], fill: bool) -> Pattern:
    """The pattern in which the last ``sum(groups)`` places of the order are predicted, one group after another.

    Args:
        length: number of patches L.
        groups: patches revealed at each step, all at least 1, at most L together.
        fill: whether placeholders make the positions of what is still hidden known.

    Raises:
        ValueError: no group, an empty group, or more hidden patches than there are.
    """
    if not groups or min(groups) < 1 or sum(groups) > length:
        raise ValueError(f"groups must be positive and sum to 1 … {length} patches, got {list(groups)}")
    time = _times(length, groups)
    place = torch.arange(1 + length)
    first, later = place[time == 1], place[time > 1]
    content = torch.cat([place[(time > 0) & (time < len(groups))].flip(0), place[time == 0]])
    placeholders = later.flip(0) if fill else later[:0]
    position_in_order = torch.cat([content, placeholders, first, later])
    clock = torch.cat([time[content], torch.zeros_like(placeholders), time[first] - 1, time[later] - 1])
    is_masked = torch.arange(len(position_in_order)) >= len(content)
    readable = len(content) + (len(placeholders) + len(first) if fill else 0)
    visible = _rule(time[position_in_order], clock, is_masked)
    visible[:, readable:] = False
    return Pattern(
        position_in_order,
        is_masked,
        visible,
        torch.arange(len(position_in_order) - sum(groups), len(position_in_order)),
        length,
    )


def _times(length: int, groups: Sequence[int]) -> Tensor:
    """(1 + L,) the group in which each place of the order is revealed; 0 for CLS and the context."""
    counts = torch.tensor([1 + length - sum(groups), *groups])
    return torch.repeat_interleave(torch.arange(len(counts)), counts)


def _rule(time: Tensor, clock: Tensor, is_masked: Tensor) -> Tensor:
    """(R, R) bool: the content of a place is fresh for a reader from its time on, its placeholder until then."""
    known = time[None, :] <= clock[:, None]
    return known ^ is_masked[None, :]


def mim(length: int, num_masked: int) -> Pattern:
    """Masked image modelling as in BEiT: ``num_masked`` of ``length`` patches predicted at once."""
    return reveal(length, [num_masked], fill=True)


def pet(length: int, num_masked: int) -> Pattern:
    """Permuted prediction alone: one patch at a time from the context and the patches before it."""
    return reveal(length, [1] * num_masked, fill=False)


def mapet(length: int, num_masked: int) -> Pattern:
    """Masked and permuted prediction (arXiv 2306.07346): as ``pet``, and every hidden position is known ahead."""
    return reveal(length, [1] * num_masked, fill=True)
