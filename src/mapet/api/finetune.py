"""``mapet finetune``: a pre-trained encoder and labelled images in, a classifier and its accuracy out."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.api.finetune_inputs import evaluate, finetune_batches, record, validate
from mapet.api.pretrain import is_file
from mapet.api.training import batch_line, reopened, teller, training_in
from mapet.config.finetune import RANDOM, FinetuneRecipe, protocol
from mapet.config.recipe import Runtime, read, save
from mapet.utils.log import say
from mapet.utils.owned import require_apart

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mapet.build.finetune import FinetuneBatches
    from mapet.engine.run import Run


def named_tuning(name: str | None) -> FinetuneRecipe:
    """Settings by name or YAML file; the defaults without either."""
    if name is None:
        return FinetuneRecipe()
    if is_file(name):
        return read(name, FinetuneRecipe)
    from mapet.config.recipes.finetune import find

    return find(name)


def _anchored(t: FinetuneRecipe) -> FinetuneRecipe:
    """Paths made absolute, so that the run can go on from anywhere."""

    def absolute(path: str, word: str) -> str:
        return path if path == word else str(Path(path).expanduser().absolute())

    return replace(t, init=absolute(t.init, RANDOM), data=absolute(t.data, "cifar10"))


def finetune(
    t: FinetuneRecipe,
    out: str | Path,
    runtime: Runtime | None = None,
    *,
    overwrite: bool = False,
    evaluate_every: int = 0,
    say: Callable[[str], None] = say,
) -> "Run":
    """Train a classifier in the new folder ``out`` and test it there at the end, and every so many epochs.

    Raises:
        MapetError: a folder in use; settings, images, labels or a FROM that do not fit; a loss that is no number.
        Stopped: SIGINT or SIGTERM came; ``resume`` goes on.
    """
    from mapet.build.finetune import begin
    from mapet.engine.run import Run
    from mapet.utils.process_group import first_process

    run, runtime = Run(out), runtime or Runtime()
    require_apart(out, data=t.data, FROM=t.init)
    ahead = validate(t, runtime) if first_process() else None

    def prepare() -> None:
        save(t, Run.create(out, overwrite=overwrite).recipe)
        if ahead is not None:
            begin(run, ahead[0], t, ahead[1])

    return _go(run, t, runtime, evaluate_every, say, prepare)


def resume(
    folder: str | Path,
    runtime: Runtime | None = None,
    *,
    evaluate_every: int = 0,
    say: Callable[[str], None] = say,
) -> "Run":
    """Go on with the fine-tuning in ``folder`` from its last checkpoint; raises as ``finetune``."""
    from mapet.build.finetune import begin

    run, runtime = reopened(folder, say), runtime or Runtime()
    t = read(run.recipe, FinetuneRecipe)

    def prepare() -> None:
        if not run.last.exists():
            classifier, about = validate(t, runtime)
            begin(run, classifier, t, about)

    return _go(run, t, runtime, evaluate_every, say, prepare)


def _go(
    run: "Run",
    t: FinetuneRecipe,
    runtime: Runtime,
    every: int,
    say: Callable[[str], None],
    prepare: Callable[[], object],
) -> "Run":
    tell = teller(run, say)
    with training_in(run, runtime, t.precision, prepare) as fabric:
        stream = finetune_batches(run, t, runtime, fabric)
        _tell_plan(tell, run, t, runtime, stream)
        whole = t.optimization.epochs
        between = range(every, ceil(whole), every) if every else ()
        ends = {epoch * stream.steps_per_epoch: epoch for epoch in between} | {stream.steps: whole}
        for end, epoch in sorted(ends.items()):
            if run.completed <= end <= stream.steps:
                _stage(run, t, runtime, fabric, stream, epoch, end, tell)
        if note := stream.shuffled.bad.note():
            tell(f"note      {note}")
        tell(f"done      step {stream.steps} → {run.folder}")
        return run


def _stage(
    run: "Run",
    t: FinetuneRecipe,
    runtime: Runtime,
    fabric: "Fabric",
    stream: "FinetuneBatches",
    epoch: float,
    end: int,
    tell: Callable[[str], None],
) -> None:
    """Train to step ``end``, that of ``epoch``, which continues exactly whatever came before, and test."""
    from mapet.build.finetune import Until, build_optim, shaped
    from mapet.engine.fit import fit
    from mapet.evals.finetune import FineTuning

    objective = FineTuning(shaped(run)[0])
    fit(
        objective,
        Until(stream, end),
        build_optim(t, objective, stream),
        fabric,
        run,
        seed=t.seed,
        accumulate=runtime.parts(t.optimization.batch_size),
        save_every=runtime.save_every,
        compiled=runtime.compile,
        grad_checkpointing=runtime.grad_checkpointing,
        label="finetune" if end == stream.steps else f"to epoch {epoch}",
        describe=_figures,
    )
    scores = evaluate(objective.classifier, t, runtime, fabric)
    tell(f"protocol  {protocol(t)}")
    for name, score in scores.items():
        tell(f"{name:<9} {score} of {score.count:,} test images, after epoch {epoch:g} of {t.optimization.epochs:g}")
    if fabric.is_global_zero:
        record(
            run, {"protocol": protocol(t), "step": end, "epoch": epoch, "data": t.data, "limit": t.max_images}, scores
        )
    fabric.barrier()


def _figures(recent: Mapping[str, float]) -> str:
    return f"loss {recent['loss']:.3f}  training accuracy {recent['accuracy']:.1%}"


def _tell_plan(
    tell: Callable[[str], None], run: "Run", t: FinetuneRecipe, runtime: Runtime, stream: "FinetuneBatches"
) -> None:
    from mapet.build.finetune import shaped

    classifier, about = shaped(run)
    millions = sum(p.numel() for p in classifier.parameters()) / 1e6
    o = t.optimization
    tell(f"data      {stream.shuffled.source.name}: {len(stream.shuffled.indices):,} images")
    tell(f"model     {millions:.1f} M parameters, {classifier.num_classes} classes; from {about['from']}")
    tell(f"steps     {o.epochs:g} epochs × {stream.steps_per_epoch} steps of {batch_line(o.batch_size, t.lr, runtime)}")
