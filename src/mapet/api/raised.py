"""More epochs for a run that was begun with fewer: allowed where the learning rates of its steps stay the same."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mapet.config.flat import updated
from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    from mapet.engine.optim import Schedule

R = TypeVar("R")


def raised(recipe: R, folder: str | Path, epochs: float | None) -> R:
    """The recipe of the run in ``folder`` with so many epochs; None: as it is.

    Raises:
        MapetError: fewer epochs than it was begun with, or not a pre-training or fine-tuning.
    """
    if epochs is None:
        return recipe
    o: Any = getattr(recipe, "optimization", None)
    if o is None:
        raise MapetError(f"--epochs does not apply to {folder}, which trains a tokenizer; remove it.")
    if epochs < o.epochs:
        raise MapetError(f"{folder} was begun with --epochs {o.epochs:g}, which can be raised only, got {epochs:g}.")
    return updated(recipe, epochs=epochs)


def require_same_rates(recipe: Any, before: float, batches: Any, completed: int, folder: Path) -> None:
    """Require that the completed steps would have had the same learning rates with the new number of epochs.

    They have with a constant rate, where --min-lr is not below the peak, and during the warm-up.

    Args:
        recipe: of the run, with the new epochs.
        before: the epochs that the run was begun with.
        batches: the training stream of the new epochs.
        completed: steps.
        folder: the run.

    Raises:
        MapetError: one differs.
    """
    from mapet.build.batches import FirstSteps
    from mapet.data.loader import steps_in

    images = batches.shuffled
    earlier = FirstSteps(batches, steps_in(before, len(images.indices), images.batch_size))
    was, now = _schedule(recipe, earlier), _schedule(recipe, batches)
    if any(was(step) != now(step) for step in range(completed)):
        raise MapetError(
            f"{folder} cannot be resumed with --epochs {recipe.optimization.epochs:g}: its {completed:,} steps "
            f"followed {was}, which ends after {before:g} epochs. Begin a new run from its weights, with "
            f"--init {folder} and another --out."
        )


def _schedule(recipe: Any, batches: Any) -> "Schedule":
    from mapet.engine.optim import scheduled

    o = recipe.optimization
    return scheduled(batches, peak=recipe.lr, floor=o.min_lr, start=o.warmup_lr, warmup_epochs=o.warmup_epochs)
