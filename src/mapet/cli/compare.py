"""``mapet compare``: several objectives under one setting, with seeds, into one table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.api.compare.plan import Plan, Trial
from mapet.cli.options import listed, parse, positional, require_outside, say, take
from mapet.config.checks import OWN
from mapet.config.recipe import Recipe, Runtime, read
from mapet.utils.errors import MapetError
from mapet.utils.owned import require_apart

if TYPE_CHECKING:
    from mapet.api.compare.plan import Variant
    from mapet.api.compare.results_folder import ResultsFolder

ABOUT = """Train objectives under one setting, measure them, and write one table with seeds.

RECIPE is a name or FILE.yaml; its settings can be changed by the options below. All runs share them, their tokens, the
sequence of the images and, seed by seed, the encoder's first weights.

--resume OUT goes on with an interrupted comparison; so does the same command again. With other --objectives,
--baselines, --seeds, --evaluate or --budget it grows by them: nothing is done twice, and the tables hold all."""


@dataclass(frozen=True)
class Options:
    """Options of ``mapet compare RECIPE``."""

    out: str = ""
    """Folder for everything; one that was interrupted goes on."""
    objectives: str = "mapet,pet,mim,cae,mae"
    """Objectives, separated by commas; under equal compute the first is the measure."""
    baselines: str = ""
    """random (the encoder as it is drawn), scratch (trained with labels alone, by --tuning), or both."""
    seeds: int = 3
    """Runs of each, under seeds from --seed on."""
    evaluate: str = "knn,linear"
    """knn, linear, linear-mae, linear-beit, attentive, fewshot, finetune: any of them."""
    budget: str = "epochs"
    """epochs (the same number for all), compute (as many steps as cost the first one's), or both."""
    vary: tuple[str, ...] = ()
    """SETTING=VALUE,VALUE,...: a grid over any setting of the recipe by its option's name; context is the share that is
    given, 1 - mask-ratio; all stands for None. May come several times."""
    tokenizers: str = ""
    """Folders of tokenizers or of their tokens, separated by commas: a grid over them."""
    knn_every: float = 0.0
    """k-NN accuracy while training, every so many epochs, which may be a fraction; 0: none."""
    eval_data: str | None = None
    """Labelled images: a folder with one sub-folder per class, or cifar10; None: those of the recipe."""
    eval_limit: int | None = None
    """Use only so many labelled training images, chosen at random; None: all."""
    tuning: str | None = None
    """Settings of finetune and scratch: the name of a fine-tuning recipe or FILE.yaml; None: the defaults."""
    recipe: Recipe = field(default_factory=Recipe)
    runtime: Runtime = field(default_factory=Runtime)


def command(arguments: list[str]) -> int:
    """Parse, train and measure, write."""
    from mapet.cli.pretrain import again, stoppable

    folder, arguments = take(arguments, "--resume")
    if folder is not None:
        runtime = parse(Runtime(), arguments, "compare --resume OUT", ABOUT)
        plan, out = _begun(Path(folder)), Path(folder)
    else:
        plan, out, runtime = _asked(arguments)
    if runtime.processes > 1:
        raise MapetError("mapet compare trains one run after another on one device: leave --devices out.")
    return stoppable(lambda: compare(plan, out, runtime), again(str(out), runtime, "compare"), out)


def _asked(arguments: list[str]) -> tuple[Plan, Path, Runtime]:
    from mapet.cli.finetune import named_tuning
    from mapet.cli.pretrain import anchored, is_file, named_recipe
    from mapet.cli.tokenize import require_one_way

    varied, arguments = _all(arguments, "--vary")
    words, rest = positional(arguments, Options())
    if len(words) > 1:
        raise MapetError(f'mapet compare takes one RECIPE, got also "{words[1]}": separate lists by commas.')
    recipe = named_recipe(words[0] if words else None)
    _check_objective(rest, recipe.objective.objective)
    o = parse(Options(recipe=recipe), rest, "compare RECIPE", ABOUT)
    if not o.recipe.data or not o.out:
        raise MapetError("mapet compare needs --data (a folder of images, or cifar10) and --out (a folder).")
    t = o.recipe.tokenizer
    require_apart(o.out, RECIPE=words[0] if words and is_file(words[0]) else None, tuning=o.tuning)
    require_apart(o.out, data=o.recipe.data, eval_data=o.eval_data, tokens=o.recipe.tokens, tokenizer=t.tokenizer)
    require_apart(o.out, teacher=t.teacher, teacher_weights=t.teacher_weights)
    for folder in listed(o.tokenizers):
        require_apart(o.out, tokenizers=folder)
    ready = {"tokens": o.recipe.tokens, "tokenizer": t.tokenizer, "tokenizers": o.tokenizers}
    require_one_way(t, recipe.tokenizer, **ready)
    plan = Plan(
        objectives=listed(o.objectives),
        baselines=listed(o.baselines),
        seeds=o.seeds,
        evaluate=listed(o.evaluate),
        budget=listed(o.budget),
        vary=varied,
        tokenizers=tuple(str(Path(folder).expanduser().absolute()) for folder in listed(o.tokenizers)),
        knn_every=o.knn_every,
        eval_data=_absolute(o.eval_data),
        eval_limit=o.eval_limit,
        recipe=anchored(o.recipe),
        tuning=named_tuning(o.tuning),
    )
    return plan, Path(o.out), o.runtime


def _check_objective(arguments: list[str], named: str) -> None:
    """Refuse options that would fit one objective alone."""
    given = {argument.partition("=")[0].replace("_", "-").replace("--no-", "--") for argument in arguments}
    if "--objective" in given:
        raise MapetError("mapet compare takes --objectives, separated by commas, and no --objective.")
    for name, owners in OWN.items():
        option = name.replace("_", "-")
        if f"--{option}" in given and named not in owners:
            raise MapetError(f"--{option} is for {' and '.join(owners)}: in a comparison say --vary {option}=VALUE.")


def _all(arguments: list[str], option: str) -> tuple[tuple[str, ...], list[str]]:
    """The values of an option that may come several times, and the rest of the arguments."""
    found: list[str] = []
    while True:
        value, arguments = take(arguments, option)
        if value is None:
            return tuple(found), arguments
        found.append(value)


def _absolute(data: str | None) -> str | None:
    return data if data in (None, "cifar10") else str(Path(data).expanduser().absolute())


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
            f"{cell.arm.method} {cell.arm.setting}".strip() + f" {round(cell.epochs, 3):g}" for cell in trained
        )
        lines.append(f"epochs    equal {budget}: {epochs}")
    names = differences(every)
    lines.append(f"fair      beside objective and seed, the runs differ in {', '.join(names) or 'nothing'}")
    return lines
