"""What the log says of a training before its first step."""

from typing import TYPE_CHECKING, Any

from mapet.api.batch_size import batch_line
from mapet.utils.log import log

if TYPE_CHECKING:
    from mapet.api.training import Job
    from mapet.engine.optim import Optim


def log_finished(completed: int, steps: int) -> None:
    """Say at once if a resumed run has nothing left to train."""
    if completed >= steps:
        log.info(f"finished  all {steps:,} steps were done before: nothing is left to train")


def log_plan(job: "Job[Any]", batches: Any, objective: Any) -> None:
    """Data, model, and the number and size of steps."""
    images, (epochs, batch_size, lr) = batches.shuffled, job.size
    steps = f"{epochs:g} epochs × {batches.steps_per_epoch} steps of {batch_line(batch_size, lr, job.runtime)}"
    data = f"{images.source.name}: {len(images.indices):,} images"
    for name, line in {"data": data, **job.plan(batches, objective), "steps": steps}.items():
        log.info(f"{name:<10}{line}")


def log_schedule(optim: "Optim", steps: int) -> None:
    """The learning rate in words, and notes about settings that a run of so many steps does not suit."""
    from mapet.engine.optim import Schedule, initial_share

    notes = [initial_share(optim.ema_decay, steps)]
    if isinstance(optim.lr, Schedule):
        log.info(f"rate      {optim.lr}")
        notes = [*optim.lr.notes, *notes]
    for note in filter(None, notes):
        log.info(f"note      {note}")
