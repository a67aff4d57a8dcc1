"""What a comparison leaves: CSV files while it goes, tables and figures in the end."""

from collections.abc import Callable, Mapping, Sequence
from textwrap import fill
from typing import Any

from mapet.api.compare import aggregate as outcome
from mapet.api.compare.evaluations import EVALUATIONS
from mapet.api.compare.plan import Plan, Trial
from mapet.api.compare.results_folder import ResultsFolder
from mapet.data.dataset import has_held_out
from mapet.utils.io import replace_file
from mapet.viz import comparison, table

SEEN = "the data has no split: a fifth of it is the test set; objectives saw its images, nobody its labels"
Budgets = Mapping[str, Sequence[Trial]]


def wrapped(line: str) -> str:
    """The line on as many as a screen of 80 columns needs, the later ones indented."""
    return fill(line, table.WIDTH, subsequent_indent=" " * 10, break_long_words=False, break_on_hyphens=False)


def scores_line(known: Mapping[str, Any], plan: Plan) -> str:
    """The scores of a cell in one line."""
    return "  ".join(
        f"{table.heading((what, metric))} {100 * known[what][metric]['value']:.1f} %"
        for what in plan.measures
        for metric in outcome.headlines(known.get(what, {}))
    )


def write_rows(plan: Plan, budgets: Budgets, every: Sequence[Trial], ledger: ResultsFolder) -> None:
    """``results.csv``, ``costs.csv`` and, where it is measured, ``curves.csv``, of what is known so far."""
    files = {
        "results.csv": outcome.written(outcome.results(plan, budgets, ledger), outcome.RESULT),
        "costs.csv": outcome.written(outcome.costs(every, ledger), outcome.COST),
    }
    if plan.knn_every:
        files["curves.csv"] = outcome.written(outcome.curves(every, ledger), outcome.CURVE)
    for name, content in files.items():
        replace_file(ledger.folder / name, content)


def write_all(
    plan: Plan, budgets: Budgets, every: Sequence[Trial], ledger: ResultsFolder, say: Callable[[str], None]
) -> None:
    """The tables in all forms and the figures; the table and what it says go to the screen too."""
    entries = {budget: outcome.entries(plan, own, ledger) for budget, own in budgets.items()}
    notes = _notes(plan, ledger, every)
    files = {
        "table.md": table.markdown(entries, notes),
        "table.tex": table.latex(entries, notes),
        "table.csv": table.spreadsheet(entries),
    }
    for name, content in files.items():
        replace_file(ledger.folder / name, content)
    for budget, own in entries.items():
        say(f"\n{table.TITLES[budget]}\n\n{table.plain(own)}\n")
        for line in table.statements(own):
            say(wrapped(line))
    figures = [comparison.accuracy(entries, ledger.folder / "accuracy.png")]
    if plan.knn_every:
        figures.append(comparison.curves(outcome.curves(every, ledger), ledger.folder / "knn-while-training.png"))
    names = ["results.csv", "costs.csv", *files, *(figure.name for figure in figures)]
    say("\n" + wrapped(f"written   {', '.join(names)} in {ledger.folder}"))


def _notes(plan: Plan, ledger: ResultsFolder, every: Sequence[Trial]) -> list[str]:
    """Under which protocol each number was taken, and what an interval means."""
    protocols = [f"{what}: {EVALUATIONS[what].protocol(plan)}" for what in plan.measures]
    found = [score["top1"]["count"] for cell in every for score in ledger.known(cell).values() if "top1" in score]
    tests = f" and {found[0]:,} test images" if found else ""
    labelled = "all" if plan.eval_limit is None else f"{plan.eval_limit:,}"
    spread = f"mean ± 95 % t-interval over {plan.seeds} seeds" if plan.seeds > 1 else "one seed"
    seen = [] if plan.eval_data or has_held_out(plan.recipe.data) else [SEEN]
    return [*protocols, f"{plan.labelled}, {labelled} labelled training{tests}; accuracy in %, {spread}", *seen]
