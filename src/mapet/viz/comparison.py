"""Figures of a comparison: accuracy over epochs and over compute, after and during training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mapet.viz.figures import blank, save
from mapet.viz.table import Entry, Key, heading

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#56B4E9", "#000000", "#8C6D31", "#7B4173", "#637939", "#AD494A")  # of further methods
METHODS = {  # one colour of a method in every figure (Okabe and Ito 2008: safe for colour-blind readers)
    "mapet": "#0072B2",
    "pet": "#D55E00",
    "mim": "#009E73",
    "cae": "#CC79A7",
    "mae": "#E69F00",
    "random": "#6E6E6E",
    "scratch": "#A0A0A0",
}
MARKERS = "osD^vP*X"
AXES = {"epochs": "epochs", "pflop": "compute of the training (PFLOP)"}

Styles = Mapping[tuple[str, str], tuple[str, str]]
Seeds = Mapping[tuple[str, str, float, Key], Sequence[float]]  # values by method, setting, epochs and metric


def accuracy(budgets: Mapping[str, Sequence[Entry]], out: Path, seeds: "Seeds | None" = None) -> Path:
    """Plot final accuracy: one row per evaluation, epochs on the left, compute on the right.

    Means have intervals over seeds, and lines join those of one method; single seeds are small dots. Entries without
    training are dashed lines. Colours are methods, markers are settings.

    Args:
        budgets: entries of the table, by budget.
        out: PNG file to write; an SVG file is written beside it.
        seeds: accuracy of each seed, of ``seeds``; None: means only.
    """
    return save(accuracy_figure(budgets, seeds), out)


def accuracy_figure(budgets: Mapping[str, Sequence[Entry]], seeds: "Seeds | None" = None) -> "Figure":
    """As ``accuracy``, not written."""
    entries = list({(e.name, e.epochs): e for own in budgets.values() for e in own}.values())
    keys = list(dict.fromkeys(key for entry in entries for key in entry.accuracy))
    figure = blank(10.0, 0.8 + 2.8 * len(keys))
    panels = figure.subplots(len(keys), len(AXES), squeeze=False, sharey="row")
    styles = _styles([(entry.method, entry.setting) for entry in entries])
    for key, row in zip(keys, panels, strict=True):
        for axes, (field, label) in zip(row, AXES.items(), strict=True):
            _final(axes, [e for e in entries if key in e.accuracy], styles, key, field, seeds or {})
            axes.set_xlabel(label)
        row[0].set_ylabel(f"{heading(key)} accuracy (%)")
    _legend(figure, [entry.name for entry in entries])
    return figure


def seeds(results: Sequence[Mapping[str, str]], costs: Sequence[Mapping[str, str]]) -> Seeds:
    """The accuracy of each seed, from the rows of ``results.csv``; entries without a training have 0 epochs there."""
    found: dict[tuple[str, str, float, Key], list[float]] = {}
    trained = {(row["method"], row["setting"], row["epochs"]) for row in costs}
    for row in results:
        if (row["method"], row["setting"], row["epochs"]) in trained:
            key = (row["method"], row["setting"], float(row["epochs"]), (row["evaluation"], row["metric"]))
            found.setdefault(key, []).append(float(row["value"]))
    return found


def _final(axes: "Axes", entries: Sequence[Entry], styles: Styles, key: Key, field: str, seeds: Seeds) -> None:
    largest, lines = max(getattr(entry, field) for entry in entries) or 1, dict[str, list[tuple[float, float]]]()
    values = []
    for entry in entries:
        estimate, (color, marker) = entry.accuracy[key], styles[entry.method, entry.setting]
        values.append(100 * estimate.value)
        if not entry.images:
            axes.axhline(100 * estimate.value, color=color, linestyle="--", linewidth=1.2, label=entry.name)
            continue
        x, value, reach = getattr(entry, field), 100 * estimate.value, 100 * (estimate.reach or 0)
        lines.setdefault(entry.name, []).append((x, value))
        axes.errorbar(x, value, reach, c=color, marker=marker, ls="none", capsize=3, label=entry.name)
        own = [100 * one for one in seeds.get((entry.method, entry.setting, entry.epochs, key), ())]
        values += own
        axes.plot([x] * len(own), own, color=color, marker=".", markersize=3, linestyle="none", alpha=0.6)
    for name, points in lines.items():
        color = next(styles[e.method, e.setting][0] for e in entries if e.name == name)
        axes.plot(*zip(*sorted(points), strict=True), color=color, linewidth=1.0, alpha=0.6)
    room = max(1.0, 0.25 * (max(values) - min(values)))  # an interval wider than the values is cut, not the axis
    low, high = axes.get_ylim()
    limits = (max(0, low, min(values) - 3 * room), min(100, high, max(values) + 3 * room))
    axes.set(xlim=(0, 1.08 * largest), ylim=limits)


def curves(rows: Sequence[Mapping[str, Any]], out: Path) -> Path:
    """Plot k-NN accuracy during training over epochs and over compute: each seed light, their mean bold.

    Args:
        rows: mappings with ``run``, ``method``, ``setting``, ``seed``, ``step``, ``epoch``, ``pflop`` and ``value``.
        out: PNG file to write; an SVG file is written beside it.
    """
    return save(curves_figure(rows), out)


def curves_figure(rows: Sequence[Mapping[str, Any]]) -> "Figure":
    """As ``curves``, not written."""
    figure = blank(10.0, 4.0)
    panels = figure.subplots(1, len(AXES), sharey=True)
    variants: dict[tuple[str, str, int], list[list[Mapping[str, Any]]]] = {}
    for run in dict.fromkeys(row["run"] for row in rows):
        own = sorted((row for row in rows if row["run"] == run), key=lambda row: row["step"])
        variants.setdefault((own[0]["method"], own[0]["setting"], own[-1]["step"]), []).append(own)
    styles = _styles([(method, setting) for method, setting, _ in variants])
    for axes, (field, label) in zip(panels, {"epoch": "epochs", "pflop": AXES["pflop"]}.items(), strict=True):
        for (method, setting, _), seeds in variants.items():
            _curve(axes, seeds, field, *styles[method, setting], f"{method} ({setting})" if setting else method)
        axes.set(xlabel=label, xlim=(0, None))
    panels[0].set_ylabel("k-NN accuracy (%)")
    _legend(figure, panels[0].get_legend_handles_labels()[1])
    return figure


def _curve(
    axes: "Axes", seeds: Sequence[Sequence[Mapping[str, Any]]], field: str, color: str, marker: str, label: str
) -> None:
    for points in seeds:
        line = [(point[field], 100 * point["value"]) for point in points]
        axes.plot(*zip(*line, strict=True), color=color, alpha=0.25, linewidth=0.8)
    steps = zip(*seeds, strict=False)
    mean = [(one[0][field], 100 * fmean(point["value"] for point in one)) for one in steps]
    axes.plot(*zip(*mean, strict=True), color=color, marker=marker, markersize=4, linewidth=1.6, label=label)


def _styles(variants: Sequence[tuple[str, str]]) -> Styles:
    """Return (color, marker) by (method, setting): one colour per method in all figures, one marker per setting."""
    methods, settings = (list(dict.fromkeys(names)) for names in zip(*variants, strict=True))
    return {
        (method, setting): (
            METHODS.get(method) or COLORS[[one for one in methods if one not in METHODS].index(method) % len(COLORS)],
            MARKERS[settings.index(setting) % len(MARKERS)],
        )
        for method, setting in variants
    }


def _legend(figure: "Figure", names: Sequence[str]) -> None:
    """Add one legend of all panels below them, each name once, in the sequence of ``names``."""
    labelled = [zip(*reversed(axes.get_legend_handles_labels()), strict=True) for axes in figure.axes]
    handles = {name: handle for pairs in labelled for name, handle in pairs}
    shown = list(dict.fromkeys(names))
    columns = 7 if max(map(len, shown)) < 12 else 3
    figure.legend([handles[name] for name in shown], shown, loc="outside lower center", ncols=columns, frameon=False)
