"""The report of a comparison, made of its CSV files: those in the repository's results can be drawn, too."""

import csv
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.api.report.sections import filled, section, text_of
from mapet.config.report import ReportSettings
from mapet.utils.errors import MapetError, reason
from mapet.viz import comparison, table
from mapet.viz.report.page import Code, Page, Part, Table, Text, drawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, str]
FILES = ("results.csv", "costs.csv", "curves.csv")
FIXED = (
    "Except for settings in parentheses, all methods have the same backbone, tokens, images in the same sequence, "
    "schedule and optimizer, and are measured alike; all settings are listed at the end."
)


def page(folder: Path, s: ReportSettings) -> Page:
    """Tables, statements, charts, and the settings of all methods.

    Raises:
        MapetError: no evaluation is finished.
    """
    budgets = _budgets(folder / "table.csv")
    methods = list(dict.fromkeys(entry.method for entries in budgets.values() for entry in entries))
    seeds = max(one.count for entries in budgets.values() for e in entries for one in e.accuracy.values())
    lead = f"{', '.join(methods)}; {seeds} seed{'s' if seeds > 1 else ''} each. {FIXED}"
    sections = [
        *(section(table.TITLES[name], partial(_table, entries)) for name, entries in budgets.items()),
        section("Accuracy over epochs and over compute", partial(_charts, budgets, folder)),
        section("Settings of all runs", lambda: [Code(text_of(folder / "compare.yaml"))]),
    ]
    notes = [f"{name} is damaged: what it holds is left out." for name in FILES
             if (folder / name).exists() and not _rows(folder / name)]  # fmt: skip
    notes += ["One seed has no interval: differences may be chance."] if seeds == 1 else []
    return Page(f"Comparison: {folder.resolve().name}", lead, filled(sections), notes)


def seconds_of(folder: Path) -> float:
    """Training time of all runs of a comparison; 0 for another folder."""
    return sum(float(row["seconds"] or 0) for row in _rows(folder / "costs.csv"))


def accuracy_figure(folder: Path, budgets: Mapping[str, Sequence[table.Entry]] | None = None) -> "Figure":
    """Final accuracies over epochs and compute, with each seed; from the folder's CSV files.

    Raises:
        MapetError: no evaluation is finished.
    """
    seeds = comparison.seeds(_rows(folder / "results.csv"), _rows(folder / "costs.csv"))
    return comparison.accuracy_figure(budgets or _budgets(folder / "table.csv"), seeds)


def curves_figure(folder: Path) -> "Figure | None":
    """``knn-while-training.png`` of a comparison, not written; None: k-NN was not measured on the way."""
    numbers = ("step", "epoch", "pflop", "value")
    curves = [{**row, **{name: float(row[name]) for name in numbers}} for row in _rows(folder / "curves.csv")]
    return comparison.curves_figure(curves) if curves else None


def _rows(path: Path) -> list[Row]:
    try:
        return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError):
        return []


def _budgets(path: Path) -> dict[str, list[table.Entry]]:
    """The rows of ``table.csv`` by budget."""
    if not path.exists():
        raise MapetError(f"{path.parent} has no {path.name} yet: it is written when all runs are measured.")
    found: dict[str, list[table.Entry]] = {}
    try:
        for row in _rows(path):
            found.setdefault(row["budget"], []).append(_entry(row))
    except (KeyError, ValueError, TypeError) as error:
        raise _damaged(path, reason(error)) from error
    if not found:
        raise _damaged(path, "no rows of text in UTF-8")
    return found


def _damaged(path: Path, why: str) -> MapetError:
    return MapetError(f"{path} is damaged ({why}): mapet compare --resume {path.parent} writes it again.")


def _entry(row: Row) -> table.Entry:
    """One row of ``table.csv``."""
    accuracy = {}
    for name in row:
        what, _, metric = name.removesuffix("_seeds").partition("_")
        if name.endswith("_seeds") and int(row[name] or 0):
            reach, key = row[f"{what}_{metric}_reach"], (what, metric)
            value = float(row[f"{what}_{metric}"])
            accuracy[key] = table.Estimate(value, float(reach) if reach else None, int(row[name]))
    seconds, peak = (float(row[name]) if row[name] else None for name in ("seconds", "peak"))
    return table.Entry(
        row["method"], row["setting"], float(row["epochs"]), int(float(row["images"])), float(row["gmac"]),
        float(row["pflop"]), seconds, peak, accuracy,
    )  # fmt: skip


def _table(entries: Sequence[table.Entry]) -> list[Part]:
    header, *rows = table.cells(entries)
    lines: list[Part] = [Text(f"{line}.") for line in table.statements(entries)]
    return [Table("Cost and accuracy", rows, header), *lines, Text(f"{table.LEGEND}.")]


def _charts(budgets: Mapping[str, Sequence[table.Entry]], folder: Path) -> list[Part]:
    """Final accuracies with each seed, and the curves on the way where they were measured."""
    caption = (
        "Large: mean over seeds with its 95 % interval; small: each seed; lines join a method's points. Dashed: no "
        "pre-training."
    )
    parts: list[Part] = [
        drawn(accuracy_figure(folder, budgets), "Accuracy of each method over epochs and compute", caption)
    ]
    if while_training := curves_figure(folder):
        caption = "k-NN accuracy during training; light: each seed, dark: their mean."
        parts.append(drawn(while_training, "k-NN accuracy during training", caption))
    return parts
