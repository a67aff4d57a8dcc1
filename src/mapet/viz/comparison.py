"""Figures of a comparison: accuracy over epochs and over compute, after and during training."""

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

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito 2008
MARKERS = "osD^vP*X"
AXES = {"epochs": "epochs", "pflop": "compute of the training (PFLOP)"}
OFFSET, BINS = 0.01, 40  # points in one of 40 bins of the x axis are drawn side by side, 1 % of the axis apart

Styles = Mapping[tuple[str, str], tuple[str, str]]


def accuracy(budgets: Mapping[str, Sequence[Entry]], out: Path) -> Path:
    """Plot final accuracy with intervals over seeds: one row per evaluation, epochs on the left, compute on the right.

    Entries without training are dashed lines. Colors are methods, markers are settings; points that would overlap are
    drawn side by side.
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
    largest, drawn = max(getattr(entry, field) for entry in entries) or 1, Counter[int]()
    for entry in entries:
        estimate, (color, marker) = entry.accuracy[key], styles[entry.method, entry.setting]
        if not entry.images:
            axes.axhline(100 * estimate.value, color=color, linestyle="--", linewidth=1.2, label=entry.name)
            continue
        bin_ = round(BINS * getattr(entry, field) / largest)
        x, drawn[bin_] = getattr(entry, field) + OFFSET * largest * drawn[bin_], drawn[bin_] + 1
        value, reach = 100 * estimate.value, 100 * (estimate.reach or 0)
        axes.errorbar(x, value, reach, c=color, marker=marker, ls="none", capsize=3, label=entry.name)
    low, high = axes.get_ylim()
    axes.set(xlim=(0, 1.08 * largest), ylim=(max(0, low), min(100, high)))


def curves(rows: Sequence[Mapping[str, Any]], out: Path) -> Path:
    """Plot k-NN accuracy during training over epochs and over compute: each seed light, their mean bold.

    Args:
        rows: mappings with ``run``, ``method``, ``setting``, ``seed``, ``step``, ``epoch``, ``pflop`` and ``value``.
        out: PNG file to write.
    """
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
    return save(figure, out)


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
    """Return (color, marker) by (method, setting): one color per method, one marker per setting."""
    methods, settings = (list(dict.fromkeys(names)) for names in zip(*variants, strict=True))
    return {
        (method, setting): (
            COLORS[methods.index(method) % len(COLORS)],
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
