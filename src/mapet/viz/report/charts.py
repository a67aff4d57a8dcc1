"""The charts of a report."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mapet.viz.figures import BLUE, GREY, ORANGE, blank, plain, running_mean, smoothing

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

MOST_NAMES = 20  # classes that are named along a confusion matrix


def rates(columns: "Mapping[str, NDArray[np.float64]]") -> "Figure":
    """Learning rate and norm of the gradient over steps, where they are recorded."""
    panels = {"lr": "learning rate", "grad_norm": "norm of the gradient"}
    shown = [name for name in panels if name in columns and not np.isnan(columns[name]).all()]
    figure = blank(4.6 * len(shown), 3.0)
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(shown))), shown, strict=True):
        step, values = columns["step"], columns[name]
        if name == "grad_norm":
            axes.plot(step, values, color=BLUE, alpha=0.25, linewidth=0.8)
            values = running_mean(values, smoothing(len(step)))
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:.2g}")
        else:
            axes.set_ylim(0, 1.08 * np.nanmax(values))
        axes.plot(step, values, color=BLUE, linewidth=1.6)
        axes.set(xlabel="step", ylabel=panels[name])
        plain(axes)
    return figure


def probes(rows: Sequence[Mapping[str, float]]) -> "Figure":
    """What was measured on the way: k-NN accuracy with its interval, and the effective rank, over epochs."""
    labelled = [row for row in rows if "knn" in row]
    figure = blank(9.2 if labelled else 4.6, 3.0)
    panels = figure.subplots(1, 2 if labelled else 1, squeeze=False)[0]
    if labelled:
        axes, epochs = panels[0], [row["epoch"] for row in labelled]
        axes.plot(epochs, [100 * row["knn"] for row in labelled], color=BLUE, marker="o", markersize=4)
        low, high = ([100 * row[name] for row in labelled] for name in ("knn_low", "knn_high"))
        axes.fill_between(epochs, low, high, color=BLUE, alpha=0.15, linewidth=0)
        guess = 100 * labelled[-1]["guess"]
        axes.axhline(guess, color=GREY, linestyle="--", linewidth=1.2, label="most frequent training class")
        axes.set(xlabel="epoch", ylabel="k-NN accuracy (%)")
        axes.legend(frameon=False)
    axes = panels[-1]
    axes.plot([row["epoch"] for row in rows], [row["rank"] for row in rows], color=ORANGE, marker="o", markersize=4)
    axes.set(xlabel="epoch", ylabel="effective rank of the features", ylim=(0, None))
    for axes in panels:
        plain(axes)
    return figure


def confusion(counts: "NDArray[Any]", names: Sequence[str]) -> "Figure":
    """A confusion matrix (C, C): the true class down, the predicted one across; each row's shares in percent."""
    shares = 100 * counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    side = 6.2 if len(names) <= MOST_NAMES else 5.2
    figure = blank(side + 0.8, side)
    axes = figure.subplots()
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(shown, label="images of the true class (%)", shrink=0.8)
    if len(names) <= MOST_NAMES:
        short = [name if len(name) < 18 else f"{name[:16]}…" for name in names]
        axes.set_xticks(range(len(names)), short, rotation=90, parse_math=False)
        axes.set_yticks(range(len(names)), short, parse_math=False)
        for row, column in np.argwhere(shares >= 1):
            dark = shares[row, column] > 50
            axes.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", fontsize=7,
                      color="white" if dark else "black")  # fmt: skip
    axes.set(xlabel="predicted", ylabel="true")
    return figure
