"""Estimate how long a recipe's training takes on devices of one kind, and how much memory."""

from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from mapet.api.memory import in_units, memory_of
from mapet.api.settings import named_recipe, with_precision
from mapet.config.estimate import EstimateSettings
from mapet.config.flat import paths, updated
from mapet.config.recipe import Recipe
from mapet.config.runtime import Runtime
from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    from mapet.api.benchmark.rates import Rates

CIFAR10 = 50_000  # training images


@dataclass(frozen=True)
class Estimate:
    """Time and memory of a training, without loading images and without communication between devices.

    ``steps`` steps of ``batch_size`` images on ``devices`` devices together, each of ``seconds_per_step``; ``source``
    says where that number is from. ``memory`` is the predicted peak in bytes on each device, beyond the process itself;
    None if an objective of the user's own cannot be predicted.
    """

    steps: int
    seconds_per_step: float
    batch_size: int
    devices: int
    source: str
    memory: int | None = None

    @property
    def hours(self) -> float:
        """All steps."""
        return self.steps * self.seconds_per_step / 3600

    def __str__(self) -> str:
        devices = f"{self.devices} device{'s' if self.devices > 1 else ''}"
        text = (
            f"hours      {self.hours:.3g} on {devices}: {self.steps:,} steps of {self.batch_size} in "
            f"{self.seconds_per_step:.3g} s, {self.source}. Loading and communication between devices are not included."
        )
        text += "" if self.memory is None else f" Memory per device: {in_units(self.memory)}."
        return "\n".join(wrap(text, 80, subsequent_indent=" " * 11, break_long_words=False, break_on_hyphens=False))


def estimate(
    recipe: Recipe | str | Path | None = None, *, settings: EstimateSettings | None = None, **changes: Any
) -> Estimate:
    """Estimate a recipe's training time from measured rates, or from a number of operations per second.

    Args:
        recipe: a value, a name or a YAML file; None: the default recipe.
        settings: by default ``EstimateSettings()``; one of bench, measure and tflops must be set.
        changes: settings of either by flat names, as ``tflops=100``, ``devices=8`` or ``epochs=50``.

    Raises:
        MapetError: settings that do not fit, rates that cannot be read, or an unknown number of images.
    """
    import torch

    from mapet.build.pretrain import build_objective
    from mapet.data.loader import steps_in

    own = {name: changes.pop(name) for name in paths(EstimateSettings) if name in changes}
    r, s = with_precision(updated(named_recipe(recipe), **changes)), updated(settings or EstimateSettings(), **own)
    if not s.has_rate:
        raise MapetError("An estimate needs to know how fast a device is: give --bench, --measure or --tflops.")
    with torch.device("meta"):
        objective = build_objective(r, r.tokenizer.vocab_size)
    batch_size = r.optimization.batch_size
    steps = steps_in(r.optimization.epochs, _images(r, s), batch_size)
    seconds, source = _seconds_per_step(r, objective, -(-batch_size // s.devices), s)
    need = memory_of(r, Runtime(devices=s.devices))
    return Estimate(steps, seconds, batch_size, s.devices, source, need.total if need else None)


def _seconds_per_step(recipe: Recipe, objective: Any, share: int, s: EstimateSettings) -> tuple[float, str]:
    """Seconds of a step with ``share`` images on one device, and where the number is from."""
    from mapet.api.benchmark.predict import parts
    from mapet.build.objectives import objective_macs

    if s.tflops is not None:
        return 2 * objective_macs(objective, True) * share / (s.tflops * 1e12), f"at {s.tflops:g} TFLOP/s per device"
    if not hasattr(objective, "work"):
        raise MapetError(
            f"--bench and --measure need a built-in objective, not {recipe.objective.name}: give --tflops."
        )

    rates, source = _rates(recipe, objective.encoder.embed_dim, s)
    seconds = parts(objective, share, rates)
    total = sum(seconds.values())
    shares = ", ".join(f"{name} {part / total:.0%}" for name, part in seconds.items())
    return total, f"at the rates of {source} ({rates.device}, {rates.precision}, width {rates.width}): {shares}"


def _rates(recipe: Recipe, width: int, s: EstimateSettings) -> "tuple[Rates, str]":
    from mapet.api.benchmark.predict import nearest
    from mapet.api.benchmark.report import read_rates

    if s.bench is not None:
        return nearest(read_rates(Path(s.bench)), width, recipe.precision), str(s.bench)
    from mapet.api.benchmark.rates import measure
    from mapet.engine.distributed import pick_device

    return measure(width, recipe.precision, pick_device("auto")), "this machine, now"


def _images(recipe: Recipe, s: EstimateSettings) -> int:
    """Images per epoch."""
    count = s.images or recipe.max_images or (CIFAR10 if recipe.data == "cifar10" else None)
    if count is None and recipe.data:
        from mapet.data.dataset import open_dataset

        count = len(open_dataset(recipe.data))
    if count is None:
        raise MapetError("The number of images per epoch is unknown: give --images or --data.")
    if count < recipe.optimization.batch_size:
        raise MapetError(f"{count} images are fewer than one batch of {recipe.optimization.batch_size}.")
    return count
