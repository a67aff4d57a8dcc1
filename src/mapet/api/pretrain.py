"""``mapet pretrain``: unlabelled images in, an encoder out."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.api.pretrain_inputs import prepare_tokens, pretrain_batches, validate
from mapet.api.training import batch_line, reopened, teller, training_in
from mapet.config.recipe import Recipe, Runtime, load, save
from mapet.utils.log import say
from mapet.utils.owned import require_apart

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mapet.engine.run import Run
    from mapet.method.cae import CAE
    from mapet.method.mae import MAE
    from mapet.method.predict import TokenPrediction


def anchored(recipe: Recipe) -> Recipe:
    """Folders by their absolute path, so that the run can go on from anywhere."""

    def absolute(path: str | None) -> str | None:
        return path and str(Path(path).expanduser().absolute())

    t = recipe.tokenizer
    t = replace(t, path=absolute(t.path), teacher_weights=absolute(t.teacher_weights))
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
    from mapet.engine.run import Run
    from mapet.utils.process_group import first_process

    runtime, t = runtime or Runtime(), recipe.tokenizer
    require_apart(out, data=recipe.data, tokens=recipe.tokens, tokenizer=t.path)
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
    from mapet.api.show import rows

    millions = sum(p.numel() for p in objective.parameters()) / 1e6
    return (
        f"{recipe.model.name}, {millions:.1f} M parameters; {recipe.objective.name}: "
        f"{recipe.num_masked} of {recipe.grid[0] * recipe.grid[1]} patches predicted, {rows(objective)}"
    )


def _last_line(run: "Run", chance: float | None) -> str:
    names, *_, last = run.metrics.read_text().splitlines()
    row = dict(zip(names.split(","), map(float, last.split(",")), strict=True))
    tokens = "" if chance is None else f", token accuracy {row['accuracy']:.1%} (chance {chance:.1%})"
    return f"step {row['step']:.0f}, loss {row['loss']:.3f}{tokens}"
