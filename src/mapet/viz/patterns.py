"""Attention patterns as figures: which row reads which, for a few patches."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mapet.method.pattern import Pattern
from mapet.viz.figures import write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = {"content": "#0072b2", "mask token": "#e69f00", "unread": "#f2f2f2"}  # Okabe and Ito's, safe for all eyes
CELL = 0.26  # inches of a cell


def draw_patterns(patterns: Mapping[str, Pattern], out: Path) -> Path:
    """Write one panel per pattern, by title: a line is a row, a column a row that can be read.

    Columns are labelled with the position in the order, 0 = CLS; ``?3`` is the mask token at the third position. Bold
    rows predict a token.

    Args:
        patterns: of few patches; the real ones do not fit a page.
        out: file to write, ``.svg`` or ``.png``.

    Returns:
        ``out``.
    """
    widths = [pattern.keys + 3 for pattern in patterns.values()]
    height = max(pattern.rows for pattern in patterns.values()) + 4
    figure = Figure((CELL * sum(widths), CELL * height), layout="constrained")
    panels = figure.subplots(1, len(patterns), width_ratios=widths, squeeze=False)[0]
    for axes, (title, pattern) in zip(panels, patterns.items(), strict=True):
        _draw(axes, pattern)
        axes.set_title(title, fontsize=9)
    legend = {"reads a patch": COLORS["content"], "reads a mask token (bold rows predict)": COLORS["mask token"]}
    handles = [Patch(color=color, label=label) for label, color in legend.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return write(figure, out)


def _draw(axes: "Axes", pattern: Pattern) -> None:
    """One pattern as colored cells."""
    seen = pattern.visible[:, : pattern.keys] * (1 + pattern.is_masked[: pattern.keys].long())
    axes.imshow(seen, cmap=ListedColormap([COLORS["unread"], COLORS["content"], COLORS["mask token"]]), vmin=0, vmax=2)
    rows = zip(pattern.is_masked.tolist(), pattern.position_in_order.tolist(), strict=True)
    names = [f"{'?' * masked}{position}" for masked, position in rows]
    axes.set_xticks(range(pattern.keys), names[: pattern.keys], fontsize=6)
    axes.set_yticks(range(pattern.rows), names, fontsize=6)
    for label in axes.get_yticklabels()[pattern.rows - len(pattern.predict) :]:
        label.set_fontweight("bold")
    axes.set_xticks(torch.arange(pattern.keys) - 0.5, minor=True)
    axes.set_yticks(torch.arange(pattern.rows) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_anchor("N")
