"""How long a recipe's training should take on so many devices of one kind."""

from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from mapet.config.recipe import Recipe
from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    from mapet.api.benchmark.rates import Rates
    from mapet.method.cae import CAE
    from mapet.method.mae import MAE
    from mapet.method.predict import TokenPrediction

CIFAR10 = 50_000  # training images
HINT = "hours      give --bench FILE (of mapet bench), --measure or --tflops"


@dataclass(frozen=True)
class Hours:
    """Options of the predicted hours; one of bench, measure and tflops says how fast a device is."""

    devices: int = 1
    """Devices that share each batch."""
    images: int | None = None
    """Images of an epoch; None: the recipe's."""
    bench: str | None = None
    """A bench.json that mapet bench wrote on such a device."""
    measure: bool = False
    """Measure this machine, for some seconds."""
    tflops: float | None = None
    """Floating-point operations that a device achieves in this training, in 10¹² a second."""

    def __post_init__(self) -> None:
        for option, fits in (
            ("devices", self.devices >= 1),
            ("images", (self.images or 1) >= 1),
            ("tflops", self.tflops is None or self.tflops > 0),
        ):
            if not fits:
                raise MapetError(f"--{option} does not fit: it must be above 0.")
        if sum((self.bench is not None, self.measure, self.tflops is not None)) > 1:
            raise MapetError("--bench, --measure and --tflops are three sources of one figure: give one of them.")


def estimate_time(recipe: Recipe, vocabulary: int, o: Hours) -> str:
    """The hours, and what they are made of; or how to get them.

    Raises:
        MapetError: rates that cannot be read, or an unknown number of images.
    """
    if o.bench is None and not o.measure and o.tflops is None:
        return HINT
    import torch

    from mapet.build.pretrain import build_objective
    from mapet.data.loader import steps_in

    with torch.device("meta"):
        objective = build_objective(recipe, vocabulary)
    batch = recipe.optimization.batch_size
    steps = steps_in(recipe.optimization.epochs, _images(recipe, o), batch)
    seconds, how = _step(recipe, objective, -(-batch // o.devices), o)
    of = f"{o.devices} device{'s' if o.devices > 1 else ''}"
    text = (
        f"hours      {steps * seconds / 3600:.3g} on {of}: {steps:,} steps of {batch} in {seconds:.3g} s, {how}. "
        "Loading, and what devices tell one another, come on top."
    )
    return "\n".join(wrap(text, 80, subsequent_indent=" " * 11, break_long_words=False, break_on_hyphens=False))


def _step(recipe: Recipe, objective: "TokenPrediction | CAE | MAE", share: int, o: Hours) -> tuple[float, str]:
    """Seconds of a step of ``share`` images on one device, and how that is known."""
    if o.tflops is not None:
        return 2 * objective.macs(training=True) * share / (o.tflops * 1e12), f"at {o.tflops:g} TFLOP/s a device"
    from mapet.api.benchmark.predict import parts

    rates, source = _rates(recipe, objective.encoder.embed_dim, o)
    found = parts(objective, share, rates)
    whole = sum(found.values())
    shares = ", ".join(f"{name} {part / whole:.0%}" for name, part in found.items())
    return whole, f"at the rates of {source} ({rates.device}, {rates.precision}, width {rates.width}): {shares}"


def _rates(recipe: Recipe, width: int, o: Hours) -> "tuple[Rates, str]":
    from mapet.api.benchmark.predict import nearest
    from mapet.api.benchmark.report import read_rates

    if o.bench is not None:
        return nearest(read_rates(Path(o.bench)), width, recipe.precision), o.bench
    from mapet.api.benchmark.rates import measure
    from mapet.engine.distributed import pick_device

    device = pick_device("auto")
    return measure(width, recipe.precision, device), "this machine, now"


def _images(recipe: Recipe, o: Hours) -> int:
    """Images of an epoch."""
    known = o.images or recipe.max_images or (CIFAR10 if recipe.data == "cifar10" else None)
    if known is None and recipe.data:
        from mapet.data.dataset import open_dataset

        known = len(open_dataset(recipe.data))
    if known is None:
        raise MapetError("How many images an epoch has is not known: give --images, or --data.")
    if known < recipe.optimization.batch_size:
        raise MapetError(f"{known} images are fewer than one batch of {recipe.optimization.batch_size}.")
    return known
