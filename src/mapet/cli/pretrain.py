"""``mapet pretrain``: unlabelled images in, an encoder out."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.api.pretrain_inputs import prepare_tokens, pretrain_batches, validate
from mapet.api.training import Undone, batch_line, reopened, require_unchanged, teller, training_in
from mapet.cli.options import changed, parse, say, take
from mapet.cli.tokenize import require_one_way
from mapet.config.recipe import Recipe, Runtime, load, save
from mapet.utils.errors import MapetError
from mapet.utils.owned import require_apart

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mapet.engine.run import Run
    from mapet.method.cae import CAE
    from mapet.method.mae import MAE
    from mapet.method.predict import TokenPrediction

ABOUT = """Pre-train an encoder on unlabelled images.

--recipe NAME (or FILE.yaml) sets the defaults of all other options.

--resume RUN goes on with an interrupted run."""


@dataclass(frozen=True)
class Options:
    """Options of ``mapet pretrain``."""

    out: str = ""
    """Folder for the run; must be empty or absent."""
    overwrite: bool = False
    """Replace the run that is in the folder once this one trains; nothing but files of mapet is deleted."""
    recipe: Recipe = field(default_factory=Recipe)
    runtime: Runtime = field(default_factory=Runtime)


def command(arguments: list[str]) -> int:
    """Parse, train or go on, tell what came out."""
    folder, arguments = take(arguments, "--resume")
    if folder is not None:
        runtime = _machine(folder, arguments)
        return stoppable(lambda: resume(folder, runtime), again(folder, runtime), Path(folder))
    name, arguments = take(arguments, "--recipe")
    given = named_recipe(name)
    o = parse(Options(recipe=given), arguments, "pretrain", ABOUT)
    if not o.recipe.data or not o.out:
        raise MapetError("mapet pretrain needs --data (a folder of images, or cifar10) and --out (a folder).")
    require_apart(o.out, recipe=name if is_file(name) else None)
    t = o.recipe.tokenizer
    require_one_way(t, given.tokenizer, tokens=o.recipe.tokens, tokenizer=t.tokenizer)
    recipe = anchored(o.recipe)
    train = partial(pretrain, recipe, o.out, o.runtime, overwrite=o.overwrite)
    return stoppable(train, again(o.out, o.runtime), Path(o.out))


def stoppable(train: Callable[[], object], again: str, folder: Path | None = None) -> int:
    """0 when ``train`` ends; 128 + the signal's number when it is stopped, and the command that goes on is told.

    That is ``again``, or where nothing is in the ``folder`` yet the same command.
    """
    from mapet.engine.distributed import Stopped

    try:
        train()
    except Stopped as stopped:
        say(f"stopped   after step {stopped.step}; go on with: {again}")
        return 128 + stopped.number
    except KeyboardInterrupt as end:
        begun = folder is None or (
            not isinstance(end, Undone) and any((folder / name).exists() for name in ("recipe.yaml", "compare.yaml"))
        )
        say(f"stopped   before the next step; go on with: {again if begun else 'the same command'}")
        return 130
    return 0


def again(folder: str, runtime: Runtime, *verb: str) -> str:
    """The command that goes on with the run in ``folder``, its machine settings repeated; without a verb, pretrain."""
    return shlex.join(["mapet", *(verb or ("pretrain",)), "--resume", folder, *changed(runtime)])


def anchored(recipe: Recipe) -> Recipe:
    """Folders by their absolute path, so that the run can go on from anywhere."""

    def absolute(path: str | None) -> str | None:
        return path and str(Path(path).expanduser().absolute())

    t = recipe.tokenizer
    t = replace(t, tokenizer=absolute(t.tokenizer), teacher_weights=absolute(t.teacher_weights))
    data = recipe.data if recipe.data == "cifar10" else str(absolute(recipe.data))
    return replace(recipe, data=data, tokens=absolute(recipe.tokens), tokenizer=t)


def named_recipe(name: str | None) -> Recipe:
    """A recipe by name or YAML file; the defaults without either."""
    if name is None:
        return Recipe()
    if is_file(name):
        return load(name)
    from mapet.config.recipes import find

    return find(name)


def is_file(name: str | None) -> bool:
    """Whether settings are named by a file of theirs."""
    return name is not None and name.endswith((".yaml", ".yml"))


def _machine(folder: str, arguments: list[str]) -> Runtime:
    """The machine settings to go on with; whatever else is given must be what the run was begun with."""
    recipe = load(reopened(folder).recipe)
    o = parse(Options(recipe=recipe), arguments, "pretrain", ABOUT)
    require_unchanged(folder, recipe, o.recipe)
    return o.runtime


def pretrain(
    recipe: Recipe,
    out: str | Path,
    runtime: Runtime | None = None,
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = say,
) -> "Run":
    """Train from nothing in the new folder ``out``; what the recipe does not name is made there first.

    That is the tokens, or with random crops and flips a tokenizer alone.

    Raises:
        MapetError: a folder in use, settings, images or tokens that do not fit, or a loss that is no number.
        Stopped: SIGINT or SIGTERM came; ``resume`` goes on.
    """
    from mapet.engine.distributed import first_process
    from mapet.engine.run import Run

    runtime, t = runtime or Runtime(), recipe.tokenizer
    require_apart(out, data=recipe.data, tokens=recipe.tokens, tokenizer=t.tokenizer)
    require_apart(out, teacher=t.teacher, teacher_weights=t.teacher_weights)
    if first_process():
        validate(recipe, runtime)
    return _go(Run(out), recipe, runtime, say, lambda: save(recipe, Run.create(out, overwrite=overwrite).recipe))


def resume(folder: str | Path, runtime: Runtime | None = None, *, say: Callable[[str], None] = say) -> "Run":
    """Go on with the run in ``folder`` from its last checkpoint; raises as ``pretrain``."""
    run = reopened(folder, say)
    return _go(run, load(run.recipe), runtime or Runtime(), say)


def _go(
    run: "Run",
    recipe: Recipe,
    runtime: Runtime,
    say: Callable[[str], None],
    begin: Callable[[], object] = lambda: None,
) -> "Run":
    tell = teller(run, say)

    def prepare() -> None:
        begin()
        prepare_tokens(run, recipe, runtime, tell)

    with training_in(run, runtime, recipe.precision, prepare) as fabric:
        return _train(run, recipe, runtime, fabric, tell)


def _train(run: "Run", recipe: Recipe, runtime: Runtime, fabric: "Fabric", tell: Callable[[str], None]) -> "Run":
    from mapet.build.pretrain import build_objective, build_optim
    from mapet.engine.fit import fit

    stream = pretrain_batches(run, recipe, runtime, fabric, tell)
    objective = build_objective(recipe, stream.tokens.vocabulary)
    chance = stream.chance()
    tell(f"data      {stream.shuffled.source.name}: {len(stream.shuffled.indices):,} images")
    tell(f"model     {_model_line(recipe, objective)}")
    epochs, batch = recipe.optimization.epochs, batch_line(recipe.optimization.batch_size, recipe.lr, runtime)
    tell(f"steps     {epochs:g} epochs × {stream.steps_per_epoch} steps of {batch}")

    def figures(recent: Mapping[str, float]) -> str:
        tokens = "" if chance is None else f"  tokens {recent['accuracy']:.1%} (chance {chance:.1%})"
        return f"loss {recent['loss']:.3f}{tokens}"

    fit(
        objective,
        stream,
        build_optim(recipe, objective, stream),
        fabric,
        run,
        seed=recipe.seed,
        accumulate=runtime.parts(recipe.optimization.batch_size),
        save_every=runtime.save_every,
        compiled=runtime.compile,
        grad_checkpointing=runtime.grad_checkpointing,
        describe=figures,
    )
    if note := stream.shuffled.bad.note():
        tell(f"note      {note}")
    tell(f"done      {_last_line(run, chance)} → {run.folder}")
    return run


def _model_line(recipe: Recipe, objective: "TokenPrediction | CAE | MAE") -> str:
    from mapet.cli.show import rows

    millions = sum(p.numel() for p in objective.parameters()) / 1e6
    return (
        f"{recipe.model.model}, {millions:.1f} M parameters; {recipe.objective.objective}: "
        f"{recipe.num_masked} of {recipe.grid[0] * recipe.grid[1]} patches predicted, {rows(objective)}"
    )


def _last_line(run: "Run", chance: float | None) -> str:
    names, *_, last = run.metrics.read_text().splitlines()
    row = dict(zip(names.split(","), map(float, last.split(",")), strict=True))
    tokens = "" if chance is None else f", token accuracy {row['accuracy']:.1%} (chance {chance:.1%})"
    return f"step {row['step']:.0f}, loss {row['loss']:.3f}{tokens}"
