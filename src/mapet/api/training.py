"""One training, whatever is trained: a ``Job`` describes it, ``run_training`` performs it in a run folder."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from signal import SIGINT
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from mapet.api.announced import log_finished, log_plan, log_schedule
from mapet.api.inputs import check_inputs_unchanged
from mapet.api.kept_runtime import keep, with_kept
from mapet.api.memory import Halving
from mapet.api.moved import Moved
from mapet.api.raised import require_same_rates
from mapet.api.settings import with_precision
from mapet.config.file import save
from mapet.config.runtime import Runtime
from mapet.utils.errors import MapetError
from mapet.utils.log import log
from mapet.utils.owned import RUN, is_aside, put_back
from mapet.utils.signals import Signalled

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import nn

    from mapet.data.loader import Stream
    from mapet.engine.optim import Optim
    from mapet.engine.run import Run
    from mapet.engine.tracker import Track

R = TypeVar("R")
RESTORED = "an earlier run is restored"  # note of an error


class RestoredEarlierRun(Signalled):
    """A signal came before the first step of a run that was to overwrite another one, which is restored."""


class Job(ABC, Generic[R]):
    """One training in one run folder. ``run_training`` calls the methods in the sequence in which they are listed here.

    Attributes:
        run: the folder.
        recipe: all settings that decide the result.
        runtime: devices, processes, workers.
        label: start of the progress line.
        inputs: what must not change before a resumed run ends, in words.
        with_labels: whether the images' labels belong to it.
        moved: inputs that lie elsewhere than when the run was begun.
        begun_with: its epochs then, if they are raised.
        track: logs each step to a tracker, if one is wanted.
    """

    label: ClassVar[str]
    inputs: str
    with_labels: ClassVar[bool] = False
    moved: Moved | None = None
    begun_with: float | None = None
    track: "Track | None" = None

    def __init__(self, run: "Run", recipe: R, runtime: Runtime) -> None:
        self.run, self.recipe, self.runtime = run, recipe, runtime

    @property
    @abstractmethod
    def size(self) -> tuple[float, int, float]:
        """Epochs, images of a step, and the largest learning rate."""

    def validate(self, *, new: bool) -> None:
        """Raise where the training cannot work; nothing is written yet. ``new``: the run has not begun."""

    def prepare(self) -> None:
        """Write what the training reads, into the run folder. On rank 0, before the processes join."""

    @abstractmethod
    def batches(self, fabric: "Fabric") -> "Stream":
        """The training stream."""

    @abstractmethod
    def identity(self, batches: Any) -> dict[str, Any]:
        """What else than the images must not change before a resumed run ends, ready for JSON."""

    def contents(self, batches: Any) -> dict[str, str]:
        """Hashes of what else is read than images, which a run of an earlier version did not keep."""
        return {}

    @abstractmethod
    def objective(self, batches: Any, fabric: "Fabric") -> "nn.Module":
        """The module to train, newly initialised."""

    @abstractmethod
    def plan(self, batches: Any, objective: Any) -> Mapping[str, str]:
        """Lines for the log about data and model, by their labels."""

    def fitted(self, batches: Any, objective: Any, fabric: "Fabric") -> Runtime:
        """The runtime settings, with a micro-batch size that fits into memory if none is given."""
        return self.runtime

    def initialize(self, objective: Any, batches: Any) -> None:
        """Set what the objective takes from the images. On rank 0 of a run without a checkpoint."""

    def stops(self, batches: Any) -> Iterable[int]:
        """The steps after which ``measure`` is called, ascending; the last is the last step."""
        return [batches.steps]

    @abstractmethod
    def optim(self, objective: Any, batches: Any) -> "Optim":
        """How the weights move."""

    def progress(self, recent: Mapping[str, float]) -> str:
        """Figures of recent steps as text for the progress line."""
        return f"loss {recent['loss']:.3f}"

    def measure(self, objective: Any, batches: Any, step: int, fabric: "Fabric") -> None:
        """Evaluate the objective after one of ``stops``."""

    @abstractmethod
    def summary(self, objective: Any, batches: Any) -> str:
        """The result in one line."""


def run_training(job: Job[Any], *, new: bool, overwrite: bool = False) -> "Run":
    """Train a job from its last checkpoint, or from the start, to its end.

    Rank 0 locks the run folder, writes recipe and provenance and prepares the inputs; then all ranks join. With
    ``overwrite`` an earlier run stays until the first step is logged, and is restored if that is not reached.

    Raises:
        MapetError: a folder in use, settings or inputs that do not fit, or a loss that is not finite.
        Stopped: SIGINT, SIGTERM, SIGHUP, SIGUSR1 or SIGUSR2 came; resuming continues from the checkpoint that was
            written then.
        WorkersFailed, PeersLost: a loader worker or another process ended or hangs; resuming continues from the last
            checkpoint.
        RestoredEarlierRun: Ctrl-C came before the first step, and an earlier run is restored.
    """
    from mapet.data.folder import listed_once
    from mapet.data.workers import failures_named
    from mapet.engine.distributed import distributed, require_started
    from mapet.engine.run import Run
    from mapet.engine.tracker import require_tracker, tracking
    from mapet.utils.process_group import first_process

    require_tracker(job.runtime.logger)
    run, job.recipe = job.run, with_precision(job.recipe, job.runtime.accelerator) if new else job.recipe
    with ExitStack() as stack:
        stack.enter_context(listed_once())
        job.validate(new=new)
        runtime = job.runtime = job.runtime if new else with_kept(job.runtime, run.folder)
        require_started(runtime.devices, runtime.num_nodes)
        if first_process():
            stack.enter_context(run.lock())
            run.clean()
            stack.enter_context(_restored_on_failure(run))
            if new:
                save(job.recipe, Run.create(run.folder, overwrite=overwrite).recipe)
            else:
                _require_checkpoint(run)
        stack.enter_context(run.logging())
        if first_process():
            job.prepare()
            run.write_provenance()
            keep(runtime, run.folder)
        fabric = stack.enter_context(
            distributed(
                accelerator=runtime.accelerator,
                devices=runtime.devices,
                num_nodes=runtime.num_nodes,
                precision=job.recipe.precision,
                strategy=runtime.strategy,
                minutes=runtime.timeout,
            )
        )
        stack.enter_context(failures_named())
        job.track = stack.enter_context(tracking(runtime.logger if fabric.is_global_zero else "none", run.folder))
        _train(job, fabric)
    return run


def _train(job: Job[Any], fabric: "Fabric") -> None:
    """Build and fit on every rank, and log."""
    from mapet.build.batches import FirstSteps
    from mapet.engine.fit import fit

    run, batch_size = job.run, job.size[1]
    batches = job.batches(fabric)
    completed = run.completed
    log_finished(completed, batches.steps)
    if job.begun_with is not None:
        require_same_rates(job.recipe, job.begun_with, batches, completed, run.folder)
    if fabric.is_global_zero:
        _check_inputs(job, batches)
    objective = job.objective(batches, fabric)
    more, runtime = _fit_to_memory(job, batches, objective, fabric), job.runtime
    log_plan(job, batches, objective)
    if fabric.is_global_zero and not run.last.exists():
        job.initialize(objective, batches)  # the other ranks receive the weights from rank 0 in ``fit``
    for number, step in enumerate(step for step in job.stops(batches) if step >= completed):
        if number:
            objective = job.objective(batches, fabric)
        optim = job.optim(objective, batches)
        if not number:
            log_schedule(optim, batches.steps)
        fit(
            objective,
            FirstSteps(batches, step),
            optim,
            fabric,
            run,
            seed=job.recipe.seed,
            accumulate=job.runtime.parts(batch_size),
            more_parts=more,
            save_every=runtime.save_every,
            compiled=runtime.compile,
            grad_checkpointing=runtime.grad_checkpointing,
            label=job.label if step == batches.steps else f"{job.label} to step {step}",
            describe=job.progress,
            track=job.track,
        )
        job.measure(objective, batches, step, fabric)
    if note := batches.shuffled.bad.note():
        log.info(f"note      {note}")
    if fabric.is_global_zero:
        log.info(f"done      {job.summary(objective, batches)} → {run.folder}")


def _fit_to_memory(job: Job[Any], batches: Any, objective: Any, fabric: "Fabric") -> Halving:
    """Choose and keep a micro-batch size. Returns what answers a step that does not fit all the same."""
    before, job.runtime = job.runtime, job.fitted(batches, objective, fabric)
    if fabric.is_global_zero and job.runtime != before:
        keep(job.runtime, job.run.folder)
    return Halving(job, objective, fabric)


def _check_inputs(job: Job[Any], batches: Any) -> None:
    """Refuse other inputs than those of the begin; where they lie elsewhere now, the recipe in the folder says so.

    It says so, too, if epochs are raised.
    """
    from mapet.engine.origin import note_raised

    images = batches.shuffled
    check_inputs_unchanged(
        job.run,
        images.source,
        images.indices,
        job.identity(batches),
        job.inputs,
        with_labels=job.with_labels,
        contents=job.contents(batches),
        moved=job.moved,
    )
    if job.begun_with is not None:
        note_raised(job.run.folder, job.begun_with)
    if job.moved or job.begun_with is not None:
        save(job.recipe, job.run.recipe)


def _require_checkpoint(run: "Run") -> None:
    """Refuse to resume a run whose checkpoints were deleted: it would start again and lose its metrics."""
    noted = (run.folder / "seconds.json").is_file()  # written after each checkpoint
    if noted and run.metrics.is_file() and not run.last.exists():
        raise MapetError(
            f"{run.folder} has metrics but no checkpoint any more: restore {run.last}, or begin the run again with "
            "--overwrite."
        )


@contextmanager
def _restored_on_failure(run: "Run") -> Iterator[None]:
    """Restore the run that was put aside for this one if anything fails before the first step."""
    try:
        yield
    except BaseException as error:
        if put_back(run.folder, RUN):
            if isinstance(error, KeyboardInterrupt):
                raise RestoredEarlierRun(getattr(error, "number", SIGINT)) from None
            error.add_note(RESTORED)
        raise


def reopened(folder: str | Path) -> "Run":
    """The run to resume; one that a killed ``--overwrite`` had put aside is restored first.

    Raises:
        MapetError: no run, another process that trains there, or several processes before one that was put aside.
    """
    from mapet.engine.run import Run
    from mapet.utils.process_group import launched

    run = Run(Path(folder).expanduser())
    if is_aside(run.folder):
        if launched().count > 1:
            raise MapetError(f"{run.folder} was being overwritten when that was killed: resume with one process first.")
        with run.lock():
            put_back(run.folder, RUN)
        log.info(f"restored  {run.folder}: the run that a killed --overwrite was to replace")
    return Run.open(run.folder)
