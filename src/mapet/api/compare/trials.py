"""One cell of a comparison after another: trained, measured, noted; whatever is noted already is skipped."""

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from mapet.api.compare.evaluations import EVALUATIONS, Subject, tuned, tuning
from mapet.api.compare.plan import Plan, Trial, Variant
from mapet.api.compare.results_folder import ResultsFolder, follow
from mapet.config.recipe import Recipe, Runtime
from mapet.utils.log import silent

if TYPE_CHECKING:
    from mapet.engine.run import Run
    from mapet.method.encoder import Encoder


def macs(arm: Variant) -> int:
    """Multiply-accumulates of one image's training step: forward and backward."""
    return _macs(arm)[1]


def _macs(arm: Variant) -> tuple[int, int]:
    """Of one image's forward pass, and of its training step."""
    import torch

    from mapet.build.pretrain import build_encoder, build_objective
    from mapet.method import cost

    with torch.device("meta"):
        if arm.method in ("random", "scratch"):
            forward = cost.macs(build_encoder(arm.recipe))
            return forward, 3 * forward * (arm.method == "scratch")
        objective = build_objective(arm.recipe, arm.vocabulary)
    return objective.macs(), objective.macs(training=True)


def images(recipe: Recipe) -> int:
    """Images of one epoch: whole batches."""
    count, batch = _count(recipe.data), recipe.optimization.batch_size
    return min(count, recipe.max_images or count) // batch * batch


@cache
def _count(data: str) -> int:
    from mapet.data.dataset import open_dataset

    return len(open_dataset(data))


def finish(cell: Trial, plan: Plan, ledger: ResultsFolder, runtime: Runtime) -> None:
    """Train the cell and measure it, as far as that is not done.

    Raises:
        MapetError: as ``pretrain`` and the evaluations.
        Stopped: a signal came; calling again goes on.
    """
    if "cost" not in ledger.known(cell):
        _train(cell, plan, ledger, runtime)
    if plan.knn_every and cell.arm.method in plan.objectives:
        _measure_curve(cell, plan, ledger, runtime)
    if cell.arm.method == "scratch":
        return
    wanted = [name for name in plan.evaluate if name != "finetune" or cell.arm.method != "random"]
    missing = [name for name in wanted if name not in ledger.known(cell)]
    if missing:
        subject = Subject(_encoder(cell, ledger), cell, ledger.run(cell), plan, runtime)
        for name in missing:
            ledger.note_scores(cell, name, EVALUATIONS[name].measure(subject))


def _train(cell: Trial, plan: Plan, ledger: ResultsFolder, runtime: Runtime) -> None:
    from mapet.engine.distributed import pick_device
    from mapet.engine.peak import peak, reset_peak

    forward, training = _macs(cell.arm)
    cost: dict[str, float] = {"macs": forward, "training_macs": training, "epochs": 0, "steps": 0, "images": 0}
    if cell.arm.method == "random":
        ledger.note(cell, "cost", {**cost, "seconds": None, "peak": None})
        return
    device = pick_device(runtime.accelerator)
    reset_peak(device)
    run = _scratch(cell, plan, ledger, runtime) if cell.arm.method == "scratch" else _run(cell, plan, ledger, runtime)
    steps = run.completed
    settings = plan.tuning.optimization if cell.arm.method == "scratch" else cell.recipe.optimization
    cost |= {"epochs": settings.epochs, "steps": steps, "images": steps * settings.batch_size}
    ledger.note(cell, "cost", {**cost, "seconds": run.seconds(steps), "peak": peak(device)})


def _run(cell: Trial, plan: Plan, ledger: ResultsFolder, runtime: Runtime) -> "Run":
    from mapet.api.pretrain import pretrain, resume
    from mapet.engine.run import Run

    folder, step = ledger.run(cell), cell.recipe.optimization.batch_size
    every = max(1, round(plan.knn_every * images(cell.recipe) / step))
    kept = replace(runtime, save_every=every) if plan.knn_every else runtime
    if Run(folder).recipe.is_file():
        follow(cell.recipe, Run(folder))
        return resume(folder, kept, say=silent)
    return pretrain(cell.recipe, folder, kept, say=silent)


def _scratch(cell: Trial, plan: Plan, ledger: ResultsFolder, runtime: Runtime) -> "Run":
    """Supervised training from random numbers, whose test scores are those of fine-tuning."""
    from mapet.engine.run import Run

    scores = tuned(tuning(plan, cell, "random"), ledger.run(cell), runtime)
    ledger.note_scores(cell, "finetune", scores)
    return Run(ledger.run(cell))


def _encoder(cell: Trial, ledger: ResultsFolder) -> "Encoder":
    from mapet.build.pretrain import build_encoder, load_encoder

    return build_encoder(cell.recipe) if cell.arm.method == "random" else load_encoder(ledger.run(cell))[0]


def _measure_curve(cell: Trial, plan: Plan, ledger: ResultsFolder, runtime: Runtime) -> None:
    """k-NN accuracy of every kept checkpoint, which is deleted then, and of the last."""
    from mapet.build.pretrain import encoder_at
    from mapet.engine.run import Run

    last, end = Run(ledger.run(cell)).last, str(ledger.known(cell)["cost"]["steps"])
    for path in [*sorted(last.parent.glob("step-*.safetensors")), last]:
        step = end if path == last else str(int(path.stem.removeprefix("step-")))
        curve = ledger.known(cell).get("curve", {})
        if step not in curve:
            encoder, _ = encoder_at(path, cell.recipe)
            scores = EVALUATIONS["knn"].measure(Subject(encoder, cell, ledger.run(cell), plan, runtime))
            ledger.note(cell, "curve", {**curve, step: scores["top1"].value})
        if path != last:
            path.unlink()
