"""Train and measure the trials of a comparison; what is recorded already is skipped."""

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from mapet.api.compare.evaluations import EVALUATIONS, Subject, tuned, tuning
from mapet.api.compare.plan import Plan, Trial, Variant
from mapet.api.compare.results_folder import ResultsFolder, relink
from mapet.config.recipe import Recipe, Runtime
from mapet.utils.log import quiet

if TYPE_CHECKING:
    from mapet.engine.run import Run
    from mapet.method.encoder import Encoder


def macs(variant: Variant) -> int:
    """Multiply-accumulates of a training step, per image."""
    return _macs(variant)[1]


def _macs(variant: Variant) -> tuple[int, int]:
    """Multiply-accumulates of forward pass and training step, per image."""
    import torch

    from mapet.build.objectives import objective_macs
    from mapet.build.pretrain import build_encoder, build_objective
    from mapet.method import cost

    with torch.device("meta"):
        if variant.method in ("random", "scratch"):
            forward = cost.macs(build_encoder(variant.recipe))
            return forward, 3 * forward * (variant.method == "scratch")
        objective = build_objective(variant.recipe, variant.vocabulary)
    return objective_macs(objective), objective_macs(objective, training=True)


def images(recipe: Recipe) -> int:
    """Images per epoch, in whole batches."""
    count, batch = _count(recipe.data), recipe.optimization.batch_size
    return min(count, recipe.max_images or count) // batch * batch


@cache
def _count(data: str) -> int:
    from mapet.data.dataset import open_dataset

    return len(open_dataset(data))


def finish(trial: Trial, plan: Plan, results: ResultsFolder, runtime: Runtime) -> None:
    """Train and measure the trial, unless that is done.

    Raises:
        MapetError: as ``pretrain`` and the evaluations.
        Stopped: a signal was received; calling again resumes.
    """
    if "cost" not in results.read(trial):
        _train(trial, plan, results, runtime)
    if plan.knn_every and trial.variant.method in plan.objectives:
        _measure_curve(trial, plan, results, runtime)
    if trial.variant.method == "scratch":
        return
    names = [name for name in plan.evaluate if name != "finetune" or trial.variant.method != "random"]
    missing = [name for name in names if name not in results.read(trial)]
    if missing:
        subject = Subject(_encoder(trial, results), trial, results.run(trial), plan, runtime)
        for name in missing:
            results.record_scores(trial, name, EVALUATIONS[name].measure(subject))


def _train(trial: Trial, plan: Plan, results: ResultsFolder, runtime: Runtime) -> None:
    from mapet.engine.distributed import pick_device
    from mapet.engine.peak import peak, reset_peak

    forward, training = _macs(trial.variant)
    cost: dict[str, float] = {"macs": forward, "training_macs": training, "epochs": 0, "steps": 0, "images": 0}
    if trial.variant.method == "random":
        results.record(trial, "cost", {**cost, "seconds": None, "peak": None})
        return
    device = pick_device(runtime.accelerator)
    reset_peak(device)
    run = (
        _scratch(trial, plan, results, runtime)
        if trial.variant.method == "scratch"
        else _run(trial, plan, results, runtime)
    )
    steps = run.completed
    settings = plan.tuning.optimization if trial.variant.method == "scratch" else trial.recipe.optimization
    cost |= {"epochs": settings.epochs, "steps": steps, "images": steps * settings.batch_size}
    results.record(trial, "cost", {**cost, "seconds": run.seconds(steps), "peak": peak(device)})


def _run(trial: Trial, plan: Plan, results: ResultsFolder, runtime: Runtime) -> "Run":
    from mapet.api.pretrain import pretrain
    from mapet.api.resume import resume_run
    from mapet.engine.run import Run

    folder, step = results.run(trial), trial.recipe.optimization.batch_size
    every = max(1, round(plan.knn_every * images(trial.recipe) / step))
    kept = replace(runtime, save_every=every) if plan.knn_every else runtime
    if Run(folder).recipe.is_file():
        relink(trial.recipe, Run(folder))
        with quiet():
            return resume_run(folder, kept)
    with quiet():
        return pretrain(trial.recipe, folder, runtime=kept)


def _scratch(trial: Trial, plan: Plan, results: ResultsFolder, runtime: Runtime) -> "Run":
    """Supervised training from random weights; its test scores count as those of finetune."""
    from mapet.engine.run import Run

    scores = tuned(tuning(plan, trial, "random"), results.run(trial), runtime)
    results.record_scores(trial, "finetune", scores)
    return Run(results.run(trial))


def _encoder(trial: Trial, results: ResultsFolder) -> "Encoder":
    from mapet.build.pretrain import build_encoder, load_run_encoder

    return build_encoder(trial.recipe) if trial.variant.method == "random" else load_run_encoder(results.run(trial))[0]


def _measure_curve(trial: Trial, plan: Plan, results: ResultsFolder, runtime: Runtime) -> None:
    """Record the k-NN accuracy of every kept checkpoint, which is then deleted, and of the last."""
    from mapet.build.pretrain import encoder_at
    from mapet.engine.run import Run

    last, end = Run(results.run(trial)).last, str(results.read(trial)["cost"]["steps"])
    for path in [*sorted(last.parent.glob("step-*.safetensors")), last]:
        step = end if path == last else str(int(path.stem.removeprefix("step-")))
        curve = results.read(trial).get("curve", {})
        if step not in curve:
            encoder, _ = encoder_at(path, trial.recipe)
            scores = EVALUATIONS["knn"].measure(Subject(encoder, trial, results.run(trial), plan, runtime))
            results.record(trial, "curve", {**curve, step: scores["top1"].value})
        if path != last:
            path.unlink()
