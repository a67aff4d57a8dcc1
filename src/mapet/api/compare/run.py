"""Compare objectives under one setting, with several seeds, in one table."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.api.compare.plan import Plan, Trial
from mapet.api.kept_runtime import keep, kept
from mapet.config.compare import CompareSettings
from mapet.config.file import read_run
from mapet.config.finetune import FinetuneRecipe
from mapet.config.flat import updated, updated_from
from mapet.config.objectives import absolute_name, is_own, short_name
from mapet.config.recipe import OWNERS, Recipe, Runtime
from mapet.utils.errors import MapetError
from mapet.utils.log import log
from mapet.utils.owned import require_apart, require_outside

if TYPE_CHECKING:
    from mapet.api.compare.plan import Variant
    from mapet.api.compare.results_folder import ResultsFolder
    from mapet.viz.table import Entry


@dataclass(frozen=True)
class Comparison:
    """A finished comparison; ``str`` gives its tables and statements.

    Attributes:
        folder: with all files and runs.
        plan: all settings.
        rows: one per trial and metric, as in ``results.csv``.
        tables: one entry per variant, means over seeds, by budget.
    """

    folder: Path
    plan: Plan
    rows: Sequence[Mapping[str, Any]]
    tables: "Mapping[str, Sequence[Entry]]"

    def __str__(self) -> str:
        from mapet.api.compare.writing import text

        return text(self.tables)


def compare(
    recipe: str | Path | Recipe | None = None,
    out: str | Path | None = None,
    *,
    settings: CompareSettings | None = None,
    tuning: str | Path | FinetuneRecipe | None = None,
    runtime: Runtime | None = None,
    **changes: Any,
) -> Comparison:
    """Train and measure several objectives under one setting, and write one table with seeds.

    All runs share the recipe, their tokens, the order of the images and, per seed, the initial weights of the encoder.
    What ``out`` contains already is kept; new objectives, baselines, seeds, evaluations and budgets are added.

    Args:
        recipe: the name of a recipe, a YAML file or a ``Recipe``; None: the defaults.
        out: folder of the comparison.
        settings: what is compared, and how.
        tuning: settings of finetune and scratch: the name of a fine-tuning recipe, a YAML file or a ``FinetuneRecipe``.
        runtime: how it is computed.
        changes: settings of any of these by name, for instance ``objectives``, ``seeds``, ``data``, ``epochs``.

    Raises:
        MapetError: settings, images, labels or tokens that do not fit, or a folder of something else.
        Stopped: a signal was received; calling again resumes.
    """
    from mapet.api.finetune import named_tuning
    from mapet.api.settings import named_recipe, with_precision
    from mapet.api.tokenize import require_one_way

    runtime = updated_from(runtime or Runtime(), changes)
    settings = updated_from(settings or CompareSettings(), changes)
    base = named_recipe(recipe)
    require_shared(changes, base.objective.name)
    merged = updated(base, **changes)
    if not merged.data or not out:
        raise MapetError("A comparison needs --data (a folder of images, or cifar10) and --out (a folder).")
    t, folders = merged.tokenizer, ",".join(settings.tokenizers)
    require_one_way(t, base.tokenizer, tokens=merged.tokens, tokenizer=t.path, tokenizers=folders)
    _require_apart(out, merged, settings, RECIPE=recipe, tuning=tuning)
    merged = with_precision(merged, runtime.accelerator)
    tuned = with_precision(named_tuning(tuning), runtime.accelerator)
    return _run(_plan(settings, merged, tuned), Path(out), runtime)


def resume(folder: str | Path, runtime: Runtime | None = None, **changes: Any) -> Comparison:
    """Resume the comparison in ``folder``; raises as ``compare``."""
    from mapet.api.compare.results_folder import PLAN

    folder = Path(folder)
    runtime = updated(runtime or kept(folder, Runtime), **changes)
    if not (folder / PLAN).is_file():
        raise MapetError(f"{folder} is not a comparison: it has no {PLAN}.")
    return _run(read_run(folder / PLAN, Plan), folder, runtime)


def require_shared(names: Iterable[str], objective: str) -> None:
    """Refuse settings that a comparison cannot share between objectives.

    Args:
        names: of the changed settings.
        objective: the recipe's, whose own settings may be changed.

    Raises:
        MapetError: with the option to use instead.
    """
    for name in names:
        option = name.replace("_", "-")
        if name == "objective":
            raise MapetError("--objective does not apply to a comparison; use --objectives.")
        if not (is_own(objective) or objective in OWNERS.get(name, (objective,))):
            raise MapetError(
                f"--{option} only applies to {' and '.join(OWNERS[name])}; in a comparison use --vary {option}=VALUE."
            )


def _require_apart(out: str | Path, recipe: Recipe, settings: CompareSettings, **files: Any) -> None:
    """Refuse an output folder that contains an input."""
    from mapet.build.segmentation_set import inputs_of

    t = recipe.tokenizer
    require_apart(out, **{name: file if isinstance(file, str | Path) else None for name, file in files.items()})
    require_apart(out, data=recipe.data, eval_data=settings.eval_data, tokens=recipe.tokens, tokenizer=t.path)
    require_apart(out, teacher=t.teacher, teacher_weights=t.teacher_weights)
    for path in inputs_of(settings.segment_data):
        require_apart(out, segment_data=path)
    for folder in settings.tokenizers:
        require_apart(out, tokenizers=folder)


def _plan(settings: CompareSettings, recipe: Recipe, tuning: FinetuneRecipe) -> Plan:
    """The plan, its paths absolute."""
    from mapet.api.pretrain import anchored
    from mapet.api.settings import absolute

    settings = replace(
        settings,
        objectives=tuple(map(absolute_name, settings.objectives)),
        tokenizers=tuple(absolute(folder) for folder in settings.tokenizers),
        eval_data=absolute(settings.eval_data, "cifar10"),
        segment_data=absolute(settings.segment_data),
    )
    return Plan(**vars(settings), recipe=anchored(recipe), tuning=tuning)


def _run(plan: Plan, out: Path, runtime: Runtime) -> Comparison:
    from mapet.api.compare.plan import variants
    from mapet.api.compare.results_folder import ResultsFolder, merge_plans
    from mapet.api.compare.tokens import with_tokens
    from mapet.api.compare.validate import validate
    from mapet.api.pretrain_inputs import validate as validate_pretrain
    from mapet.build.segmentation_set import inputs_of

    if runtime.processes > 1:
        raise MapetError("A comparison trains on one device: remove --devices and --num-nodes.")
    require_outside(out, plan.recipe.data, "data")
    require_outside(out, plan.eval_data, "eval_data")
    for path in inputs_of(plan.segment_data):
        require_outside(out, path, "segment_data")
    plan = merge_plans(out, plan)
    every = variants(plan)
    validate(plan, runtime)
    for variant in every:
        if variant.method in plan.objectives:
            validate_pretrain(variant.recipe, runtime)
    with ResultsFolder.opened(out, plan) as results:
        keep(runtime, out)
        return _complete(results, plan, with_tokens(plan, every, out, runtime), runtime)


def _complete(results: "ResultsFolder", plan: Plan, every: "list[Variant]", runtime: Runtime) -> Comparison:
    """Train and measure all trials of these variants, whose tokens exist, and write the tables."""
    from mapet.api.compare import aggregate, trials, writing
    from mapet.api.compare.plan import budgeted, unique
    from mapet.engine.progress import clock

    budgets = budgeted(plan, every, trials.macs, trials.images)
    runs = unique(trial for own in budgets.values() for trial in own)
    for line in plan_lines(plan, budgets, runs):
        log.info(writing.wrapped(line))
    for number, trial in enumerate(runs, 1):
        trials.finish(trial, plan, results, runtime)
        record = results.read(trial)
        seconds = record["cost"]["seconds"]
        time = "" if seconds is None else f"  {clock(seconds)}"
        log.info(f"{f'{number}/{len(runs)}':<9} {trial.name}: {writing.scores_line(record, plan)}{time}")
        writing.write_rows(plan, budgets, runs, results)
    tables = writing.write_all(plan, budgets, runs, results)
    return Comparison(results.path, plan, aggregate.result_rows(plan, budgets, results), tables)


def plan_lines(plan: Plan, budgets: Mapping[str, Sequence[Trial]], runs: Sequence[Trial]) -> list[str]:
    """What will be run, and in what the runs differ."""
    from mapet.api.compare.plan import differences

    lines = [f"runs      {len(runs)} under {plan.seeds} seeds"]
    for budget, own in budgets.items():
        trained = [trial for trial in own if trial.number == 0 and trial.variant.method in plan.objectives]
        epochs = ", ".join(
            f"{short_name(trial.variant.method)} {trial.variant.setting}".strip() + f" {round(trial.epochs, 3):g}"
            for trial in trained
        )
        lines.append(f"epochs    equal {budget}: {epochs}")
    names = differences(runs)
    lines.append(f"fair      apart from objective and seed, the runs differ in {', '.join(names) or 'nothing'}")
    return lines
