"""``mapet compare``: several objectives under one setting, with seeds, into one table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.api.compare.plan import Plan, Trial
from mapet.cli.options import require_outside
from mapet.config.objectives import short_name
from mapet.config.recipe import Runtime, read
from mapet.utils.errors import MapetError
from mapet.utils.log import say

if TYPE_CHECKING:
    from mapet.api.compare.plan import Variant
    from mapet.api.compare.results_folder import ResultsFolder


def _begun(folder: Path) -> Plan:
    from mapet.api.compare.results_folder import PLAN

    if not (folder / PLAN).is_file():
        raise MapetError(f"{folder} holds no comparison: there is no {PLAN} in it.")
    return read(folder / PLAN, Plan)


def compare(plan: Plan, out: Path, runtime: Runtime | None = None) -> None:
    """Everything, into ``out``; what is there already is not done again.

    Raises:
        MapetError: settings, images, labels or tokens that do not fit, or a folder of something else.
        Stopped: a signal came; calling again goes on.
    """
    from mapet.api.compare import evaluations
    from mapet.api.compare import validate as ahead
    from mapet.api.compare.plan import arms, check_names
    from mapet.api.compare.results_folder import ResultsFolder, merge_plans
    from mapet.api.compare.tokens import with_tokens
    from mapet.api.pretrain_inputs import validate

    runtime = runtime or Runtime()
    require_outside(out, plan.recipe.data)
    require_outside(out, plan.eval_data)
    check_names("evaluate", plan.evaluate, evaluations.EVALUATIONS)
    plan = merge_plans(out, plan)
    asked = arms(plan)
    ahead.validate(plan, runtime)
    for arm in asked:
        if arm.method in plan.objectives:
            validate(arm.recipe, runtime)
    with ResultsFolder.begun(out, plan) as ledger:
        _fill(ledger, plan, with_tokens(plan, asked, out, runtime, say), runtime)


def _fill(ledger: "ResultsFolder", plan: Plan, ready: "list[Variant]", runtime: Runtime) -> None:
    """Train and measure all cells of these arms, whose tokens are there, and write the tables."""
    from mapet.api.compare import trials as cells
    from mapet.api.compare import writing
    from mapet.api.compare.plan import budgeted, unique
    from mapet.engine.progress import clock

    budgets = budgeted(plan, ready, cells.macs, cells.images)
    every = unique(cell for own in budgets.values() for cell in own)
    for line in plan_lines(plan, budgets, every):
        say(writing.wrapped(line))
    for number, cell in enumerate(every, 1):
        cells.finish(cell, plan, ledger, runtime)
        seconds = ledger.known(cell)["cost"]["seconds"]
        time = "" if seconds is None else f"  {clock(seconds)}"
        say(f"{f'{number}/{len(every)}':<9} {cell.name}: {writing.scores_line(ledger.known(cell), plan)}{time}")
        writing.write_rows(plan, budgets, every, ledger)
    writing.write_all(plan, budgets, every, ledger, say)


def plan_lines(plan: Plan, budgets: Mapping[str, Sequence[Trial]], every: Sequence[Trial]) -> list[str]:
    """What will be run, and in what the runs differ."""
    from mapet.api.compare.plan import differences

    lines = [f"runs      {len(every)} under {plan.seeds} seeds"]
    for budget, own in budgets.items():
        trained = [cell for cell in own if cell.number == 0 and cell.arm.method in plan.objectives]
        epochs = ", ".join(
            f"{short_name(cell.arm.method)} {cell.arm.setting}".strip() + f" {round(cell.epochs, 3):g}"
            for cell in trained
        )
        lines.append(f"epochs    equal {budget}: {epochs}")
    names = differences(every)
    lines.append(f"fair      beside objective and seed, the runs differ in {', '.join(names) or 'nothing'}")
    return lines
