"""Resume a training of any kind, or a comparison."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.api.kept_runtime import kept
from mapet.api.moved import MOVABLE, relocated
from mapet.api.raised import raised
from mapet.api.training import Job, reopened, run_training
from mapet.config.file import content, read_run
from mapet.config.finetune import FinetuneRecipe
from mapet.config.flat import updated
from mapet.config.recipe import Recipe
from mapet.config.runtime import PretrainRuntime, Runtime
from mapet.config.segmentation import SegmentRecipe
from mapet.config.vqkd import VQKDRecipe
from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    from mapet.api.compare.run import Comparison
    from mapet.engine.run import Run

COMPARISON = "compare.yaml"
KINDS = {  # a setting that only recipes of the kind have
    "objective": "pre-training",
    "decoder": "segmentation",
    "backbone": "fine-tuning",
    "commitment": "VQ-KD training",
}
VERBS = {
    "pre-training": "pretrain",
    "fine-tuning": "finetune",
    "segmentation": "segment",
    "VQ-KD training": "tokenizer train-vqkd",
}
RECIPES: Mapping[str, type[Any]] = {
    "pre-training": Recipe,
    "fine-tuning": FinetuneRecipe,
    "segmentation": SegmentRecipe,
    "VQ-KD training": VQKDRecipe,
}
TESTED = ("fine-tuning", "segmentation")
SHAPES = {"fine-tuning": "classifier.json", "segmentation": "segmenter.json"}  # what a checkpoint's weights need


def resume(
    folder: str | Path,
    *,
    runtime: Runtime | None = None,
    evaluate_every: int | None = None,
    epochs: float | None = None,
    **settings: Any,
) -> "Run | Comparison":
    """Continue what was interrupted in ``folder``: a training of any kind, or a comparison.

    A training continues from its last checkpoint and ends as if it had not been interrupted.

    Args:
        folder: of the run or the comparison.
        runtime: what must not change the result; None: the defaults, with the ``max_bad_fraction`` of the last time.
        evaluate_every: of a fine-tuning or segmentation, test after every so many epochs; 0: at the end only.
        epochs: more than the run was begun with, if the learning rates of its steps stay the same: while they are
            constant (``min_lr`` not below the peak) or in the warm-up.
        settings: of ``runtime``, by the names of the command line's options; and where inputs of a training lie now,
            if they were moved: ``data``, ``tokens``, ``tokenizer``, ``teacher_weights``.

    Returns:
        The run, or the comparison with its tables.

    Raises:
        MapetError: nothing that can be resumed, moved inputs that are others, or as the function that began it.
        Stopped: a signal to stop came (SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2); ``resume`` continues.
    """
    folder = Path(folder).expanduser()
    moved = {name: path for name in MOVABLE if (path := settings.pop(name, None))}
    if epochs is not None and (folder / COMPARISON).is_file():
        raise MapetError(f"{folder} holds a comparison, whose --epochs are fixed: remove it.")
    if moved and (folder / COMPARISON).is_file():
        raise MapetError(f"{folder} holds a comparison, whose inputs cannot be moved: put them, or a link, there.")
    if (folder / COMPARISON).is_file():
        from mapet.api.compare.run import resume as resume_comparison

        return resume_comparison(folder, updated(runtime or kept(folder, Runtime), **settings))
    kind = PretrainRuntime if kind_of(reopened(folder)) == "pre-training" else Runtime
    given = runtime and (PretrainRuntime.of(runtime) if kind is PretrainRuntime else runtime)
    wanted = updated(given or kept(folder, kind), **settings)
    return resume_run(folder, wanted, evaluate_every=evaluate_every, moved=moved, epochs=epochs)


def resume_run(
    folder: str | Path,
    runtime: Runtime,
    *,
    evaluate_every: int | None = None,
    moved: Mapping[str, Any] | None = None,
    epochs: float | None = None,
) -> "Run":
    """Continue a training of any kind; as ``resume``."""
    run = reopened(folder)
    kind = kind_of(run)
    if evaluate_every is not None and kind not in TESTED:
        raise MapetError(
            f"--evaluate-every only applies to a fine-tuning or segmentation, and {folder} holds a {kind}; remove it."
        )
    job = _job(run, kind, runtime, evaluate_every or 0, moved or {})
    wanted = raised(job.recipe, run.folder, epochs)
    if wanted != job.recipe:
        job.recipe, job.begun_with = wanted, job.recipe.optimization.epochs
    return run_training(job, new=False)


def kind_of(run: "Run") -> str:
    """What is trained in a run's folder: one of ``KINDS``.

    Raises:
        MapetError: none of them.
    """
    found = content(run.recipe)
    for name, kind in KINDS.items():
        if isinstance(found, dict) and name in found:
            return kind
    raise MapetError(f"{run.recipe} is not a recipe of a run: was it changed by hand?")


def require_shape(run: "Run") -> None:
    """Refuse a run with a checkpoint that has lost the file with its model's shape.

    Raises:
        MapetError: names it.
    """
    name = None
    with suppress(MapetError):  # a damaged recipe is refused where it is read
        name = SHAPES.get(kind_of(run))
    if name and run.last.exists() and not (run.folder / name).is_file():
        raise MapetError(f"{run.folder} is damaged: it has no {name}. Restore that, or begin a new run.")


def recipe_of(run: "Run") -> Any:
    """The settings of a run, of whichever kind.

    Raises:
        MapetError: not a run's recipe, or a damaged one.
    """
    return read_run(run.recipe, RECIPES[kind_of(run)])


def begun_recipe(folder: str | Path, kind: type[Any]) -> Any:
    """The settings, of a ``kind``, that the run in ``folder`` was begun with.

    Raises:
        MapetError: no run, or one of another kind.
    """
    if (Path(folder) / COMPARISON).is_file():
        raise MapetError(f"{folder} holds a comparison: run mapet compare --resume {folder}.")
    run = reopened(folder)
    if RECIPES[found := kind_of(run)] is not kind:
        wanted = next(name for name, one in RECIPES.items() if one is kind)
        raise MapetError(f"{folder} holds a {found}, not a {wanted}: run mapet {VERBS[found]} --resume {folder}.")
    return read_run(run.recipe, kind)


def _job(run: "Run", kind: str, runtime: Runtime, evaluate_every: int, given: Mapping[str, Any]) -> Job[Any]:
    job: Job[Any]
    recipe, moved = relocated(recipe_of(run), run.folder, given)
    if kind == "fine-tuning":
        from mapet.api.finetune import Finetuning

        job = Finetuning(run, recipe, runtime, evaluate_every)
    elif kind == "segmentation":
        from mapet.api.segment import Segmentation

        job = Segmentation(run, recipe, runtime, evaluate_every)
    elif kind == "VQ-KD training":
        from mapet.api.train_vqkd import VQKDTrainingJob

        job = VQKDTrainingJob(run, recipe, runtime)
    else:
        from mapet.api.pretrain import Pretraining

        job = Pretraining(run, recipe, runtime)
    job.moved = moved
    return job
