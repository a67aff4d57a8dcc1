"""A comparison as PNG figures: accuracy against epochs and against compute, in the end and while training."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mapet.viz.figures import blank, save
from mapet.viz.table import Entry, Key, heading

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito 2008
MARKERS = "osD^vP*X"
AXES = {"epochs": "epochs", "pflop": "compute of the training (PFLOP)"}
APART, NEAR = 0.01, 40  # share of the axis between points that hide one another, as those in one of 40 parts do

Styles = Mapping[tuple[str, str], tuple[str, str]]


def accuracy(budgets: Mapping[str, Sequence[Entry]], out: Path) -> Path:
    """Final accuracy with its intervals over seeds: a row an evaluation, epochs on the left and compute on the right.

    What was not trained is a dashed line. A colour is a method, a marker a setting; points that would hide one
    another stand side by side.
    """
    entries = list({(e.name, e.epochs): e for own in budgets.values() for e in own}.values())
    keys = list(dict.fromkeys(key for entry in entries for key in entry.accuracy))
    figure = blank(10.0, 0.8 + 2.8 * len(keys))
    panels = figure.subplots(len(keys), len(AXES), squeeze=False, sharey="row")
    styles = _styles([(entry.method, entry.setting) for entry in entries])
    for key, row in zip(keys, panels, strict=True):
        for axes, (field, label) in zip(row, AXES.items(), strict=True):
            _final(axes, [e for e in entries if key in e.accuracy], styles, key, field)
            axes.set_xlabel(label)
        row[0].set_ylabel(f"{heading(key)} accuracy (%)")
    _legend(figure, [entry.name for entry in entries])
    return save(figure, out)


def _final(axes: "Axes", entries: Sequence[Entry], styles: Styles, key: Key, field: str) -> None:
    most, there = max(getattr(entry, field) for entry in entries) or 1, Counter[int]()
    for entry in entries:
        found, (colour, marker) = entry.accuracy[key], styles[entry.method, entry.setting]
        if not entry.images:
            axes.axhline(100 * found.value, color=colour, linestyle="--", linewidth=1.2, label=entry.name)
            continue
        near = round(NEAR * getattr(entry, field) / most)
        beside, there[near] = getattr(entry, field) + APART * most * there[near], there[near] + 1
        value, reach = 100 * found.value, 100 * (found.reach or 0)
        axes.errorbar(beside, value, reach, c=colour, marker=marker, ls="none", capsize=3, label=entry.name)
    low, high = axes.get_ylim()
    axes.set(xlim=(0, 1.08 * most), ylim=(max(0, low), min(100, high)))


def curves(rows: Sequence[Mapping[str, Any]], out: Path) -> Path:
    """k-NN accuracy while training, against epochs and against compute: bold the mean over seeds, light each seed.

    Args:
        rows: with ``run``, ``method``, ``setting``, ``seed``, ``step``, ``epoch``, ``pflop`` and ``value``.
        out: the PNG file to write.
    """
    figure = blank(10.0, 4.0)
    panels = figure.subplots(1, len(AXES), sharey=True)
    arms: dict[tuple[str, str, int], list[list[Mapping[str, Any]]]] = {}
    for run in dict.fromkeys(row["run"] for row in rows):
        own = sorted((row for row in rows if row["run"] == run), key=lambda row: row["step"])
        arms.setdefault((own[0]["method"], own[0]["setting"], own[-1]["step"]), []).append(own)
    styles = _styles([(method, setting) for method, setting, _ in arms])
    for axes, (field, label) in zip(panels, {"epoch": "epochs", "pflop": AXES["pflop"]}.items(), strict=True):
        for (method, setting, _), seeds in arms.items():
            _curve(axes, seeds, field, *styles[method, setting], f"{method} ({setting})" if setting else method)
        axes.set(xlabel=label, xlim=(0, None))
    panels[0].set_ylabel("k-NN accuracy (%)")
    _legend(figure, panels[0].get_legend_handles_labels()[1])
    return save(figure, out)


def _curve(
    axes: "Axes", seeds: Sequence[Sequence[Mapping[str, Any]]], field: str, colour: str, marker: str, label: str
) -> None:
    for points in seeds:
        line = [(point[field], 100 * point["value"]) for point in points]
        axes.plot(*zip(*line, strict=True), color=colour, alpha=0.25, linewidth=0.8)
    steps = zip(*seeds, strict=False)
    mean = [(one[0][field], 100 * fmean(point["value"] for point in one)) for one in steps]
    axes.plot(*zip(*mean, strict=True), color=colour, marker=marker, markersize=4, linewidth=1.6, label=label)


def _styles(arms: Sequence[tuple[str, str]]) -> Styles:
    """A colour by method, a marker by setting."""
    methods, settings = (list(dict.fromkeys(names)) for names in zip(*arms, strict=True))
    return {
        (method, setting): (
            COLOURS[methods.index(method) % len(COLOURS)],
            MARKERS[settings.index(setting) % len(MARKERS)],
        )
        for method, setting in arms
    }


def _legend(figure: "Figure", names: Sequence[str]) -> None:
    """What the lines and points of all panels stand for, each once and in the sequence of ``names``, beneath them."""
    labelled = [zip(*reversed(axes.get_legend_handles_labels()), strict=True) for axes in figure.axes]
    handles = {name: handle for pairs in labelled for name, handle in pairs}
    shown = list(dict.fromkeys(names))
    columns = 7 if max(map(len, shown)) < 12 else 3
    figure.legend([handles[name] for name in shown], shown, loc="outside lower center", ncols=columns, frameon=False)
