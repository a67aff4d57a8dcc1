"""``mapet tokenizer train-vqkd``: train a VQ-KD tokenizer (BEiT v2) to say in codes what a teacher sees."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.api.training import reopened, teller, training_in
from mapet.api.vqkd_inputs import build_distill_batches, build_objective, build_optim, require_same, start, validate
from mapet.config.recipe import Runtime, read, save
from mapet.config.vqkd import VQKDRecipe
from mapet.utils.log import say
from mapet.utils.owned import require_apart
from mapet.utils.versions import versions

if TYPE_CHECKING:
    from mapet.build.vqkd import DistillBatches
    from mapet.engine.run import Run
    from mapet.tokenizers.teacher import Features
    from mapet.tokenizers.vqkd_train import VQKDTraining


MEASURED = 10_000  # images on which the finished tokenizer is measured


def _anchored(t: VQKDRecipe) -> VQKDRecipe:
    """Paths made absolute, so that the run can go on from anywhere."""
    weights = t.teacher_weights and str(Path(t.teacher_weights).expanduser().absolute())
    data = t.data if t.data == "cifar10" else str(Path(t.data).expanduser().absolute())
    return replace(t, data=data, teacher_weights=weights)


def train(
    training: VQKDRecipe,
    out: str | Path,
    runtime: Runtime | None = None,
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = say,
) -> "Run":
    """Train from nothing in the new folder ``out``, which ``load_tokenizer`` can read in the end.

    Raises:
        MapetError: a folder in use, settings, images or a teacher that do not fit, or a loss that is no number.
        Stopped: SIGINT or SIGTERM came; ``resume`` goes on.
    """
    from mapet.engine.run import Run

    runtime = runtime or Runtime()
    require_apart(out, data=training.data, teacher=training.teacher, teacher_weights=training.teacher_weights)
    teacher = validate(training, runtime)
    training = replace(training, teacher=teacher.source)  # a folder by its absolute path
    return _go(
        Run(out), training, runtime, teacher, say, lambda: save(training, Run.create(out, overwrite=overwrite).recipe)
    )


def resume(folder: str | Path, runtime: Runtime | None = None, *, say: Callable[[str], None] = say) -> "Run":
    """Go on with the run in ``folder`` from its last checkpoint; raises as ``train``."""
    run, runtime = reopened(folder, say), runtime or Runtime()
    training = read(run.recipe, VQKDRecipe)
    return _go(run, training, runtime, validate(training, runtime), say)


def _go(
    run: "Run",
    t: VQKDRecipe,
    runtime: Runtime,
    teacher: "Features",
    say: Callable[[str], None],
    begin: Callable[[], object] = lambda: None,
) -> "Run":
    from mapet.engine.fit import fit

    tell = teller(run, say)
    with training_in(run, runtime, t.precision, begin) as fabric:
        pairs = build_distill_batches(run, t, runtime, teacher, fabric)
        objective = build_objective(t, teacher.width, fabric)
        _tell_plan(tell, t, pairs, objective)
        if fabric.is_global_zero:
            require_same(run, pairs)
            if not run.last.exists():
                start(objective, pairs)  # the other processes are given these codes when fit joins them
        fit(
            objective,
            pairs,
            build_optim(t, objective, pairs),
            fabric,
            run,
            seed=t.seed,
            accumulate=runtime.parts(t.batch_size),
            save_every=runtime.save_every,
            compiled=runtime.compile,
            grad_checkpointing=runtime.grad_checkpointing,
            label="vq-kd",
            describe=_figures,
        )
        if fabric.is_global_zero:
            _finish(run, objective, pairs, tell)
        return run


def _tell_plan(tell: Callable[[str], None], t: VQKDRecipe, pairs: "DistillBatches", objective: "VQKDTraining") -> None:
    millions = sum(p.numel() for p in objective.parameters()) / 1e6
    (rows, columns), (height, width), teacher = t.grid, pairs.teacher.view.size, pairs.teacher
    tell(f"data      {pairs.shuffled.source.name}: {len(pairs.shuffled.indices):,} images")
    patches = f"{rows} × {columns} patches of images of {height} × {width} pixels"
    tell(f"teacher   {teacher.name}, {teacher.width} channels for {patches}")
    tell(f"model     vqkd, {millions:.1f} M parameters; {t.vocab_size:,} codes of {t.code_dim}")
    tell(f"steps     {t.epochs} epochs × {pairs.steps_per_epoch} steps of {t.batch_size}, lr {t.peak:.2e}")


def _figures(recent: Mapping[str, float]) -> str:
    used = f"codes {recent['used']:.0f}  perplexity {recent['perplexity']:.0f}"
    return f"loss {recent['loss']:.3f}  cosine {recent['cosine']:.3f}  {used}"


def _finish(run: "Run", objective: "VQKDTraining", pairs: "DistillBatches", tell: Callable[[str], None]) -> None:
    """Measure the tokenizer and write it beside the run's files."""
    from mapet.build.vqkd import measure

    found, tokenizer = measure(objective, pairs, MEASURED), objective.tokenizer()
    tokenizer.provenance = {
        "data": pairs.shuffled.source.name,
        "teacher": pairs.teacher.describe(),
        "origin": pairs.teacher.origin,
        "steps": pairs.steps,
        **found,
        "versions": versions(("mapet", "torch", "timm")),
    }
    tokenizer.save(run.folder)
    health = f"{found['used']:,} of {tokenizer.vocabulary:,} codes used, perplexity {found['perplexity']:.0f}"
    reached = f"{health}, cosine {found['cosine']:.3f} on {found['images']:,} images"
    tell(f"done      step {pairs.steps}: {reached} → {run.folder}")
