"""The files of a comparison: CSV files after every trial, tables and figures at the end."""

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

from mapet.api.compare import aggregate
from mapet.api.compare.evaluations import EVALUATIONS
from mapet.api.compare.plan import Plan, Trial
from mapet.api.compare.results_folder import ResultsFolder
from mapet.data.dataset import has_held_out
from mapet.utils.io import replace_file
from mapet.utils.log import log
from mapet.viz import comparison, table

NO_SPLIT = "the data has no split: a fifth of it is the test set; pre-training used its images, not its labels"
Budgets = Mapping[str, Sequence[Trial]]


def wrapped(line: str) -> str:
    """The line wrapped to 80 columns, with a hanging indent."""
    return fill(line, table.WIDTH, subsequent_indent=" " * 10, break_long_words=False, break_on_hyphens=False)


def scores_line(record: Mapping[str, Any], plan: Plan) -> str:
    """The scores of a trial in one line."""
    return "  ".join(
        f"{table.heading((what, metric))} {100 * record[what][metric]['value']:.1f} %"
        for what in plan.measures
        for metric in aggregate.headlines(record.get(what, {}))
    )


def write_rows(plan: Plan, budgets: Budgets, every: Sequence[Trial], results: ResultsFolder) -> None:
    """Write ``results.csv``, ``costs.csv`` and, if measured, ``curves.csv`` of the trials finished so far."""
    files = {
        "results.csv": aggregate.csv_text(aggregate.result_rows(plan, budgets, results), aggregate.RESULT),
        "costs.csv": aggregate.csv_text(aggregate.cost_rows(every, results), aggregate.COST),
    }
    if plan.knn_every:
        files["curves.csv"] = aggregate.csv_text(aggregate.curve_rows(every, results), aggregate.CURVE)
    for name, content in files.items():
        replace_file(results.path / name, content)


def write_all(
    plan: Plan, budgets: Budgets, every: Sequence[Trial], results: ResultsFolder
) -> dict[str, list[table.Entry]]:
    """Write the tables in all formats and the figures; returns the tables' entries by budget."""
    entries = {budget: aggregate.entries(plan, trials, results) for budget, trials in budgets.items()}
    notes = _notes(plan, results, every)
    files = {
        "table.md": table.markdown(entries, notes),
        "table.tex": table.latex(entries, notes),
        "table.csv": table.spreadsheet(entries),
    }
    for name, content in files.items():
        replace_file(results.path / name, content)
    figures = [comparison.accuracy(entries, results.path / "accuracy.png")]
    if plan.knn_every:
        figures.append(comparison.curves(aggregate.curve_rows(every, results), results.path / "knn-while-training.png"))
    names = ["results.csv", "costs.csv", *files, *(f"{figure.stem}.png and .svg" for figure in figures)]
    log.info(wrapped(f"written   {', '.join(names)} in {results.path}"))
    return entries


def text(tables: Mapping[str, Sequence[table.Entry]]) -> str:
    """Tables and statements for a screen."""
    parts = []
    for budget, entries in tables.items():
        parts += [
            f"{table.TITLES[budget]}\n\n{table.plain(entries)}",
            "\n".join(map(wrapped, table.statements(entries))),
        ]
    return "\n\n".join(part for part in parts if part)


def _notes(plan: Plan, results: ResultsFolder, every: Sequence[Trial]) -> list[str]:
    """The protocol of each evaluation, and what the intervals are."""
    protocols = [f"{what}: {EVALUATIONS[what].protocol(plan)}" for what in plan.measures]
    found = [score["top1"]["count"] for trial in every for score in results.read(trial).values() if "top1" in score]
    tests = f" and {found[0]:,} test images" if found else ""
    labelled = "all" if plan.eval_limit is None else f"{plan.eval_limit:,}"
    spread = f"mean ± 95 % t-interval over {plan.seeds} seeds" if plan.seeds > 1 else "one seed"
    seen = [] if plan.eval_data or has_held_out(plan.recipe.data) else [NO_SPLIT]
    return [*protocols, f"{plan.labelled}, {labelled} labelled training{tests}; accuracy in %, {spread}", *seen]
