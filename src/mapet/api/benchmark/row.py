"""The measurements of one implementation: a line of the table, a record of the JSON."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mapet.api.benchmark.case import OURS, Case
from mapet.api.benchmark.step import Timing
from mapet.config.benchmark import BASELINES

DERIVED = (
    "seconds",
    "passes_seconds",
    "images_per_second",
    "flops",
    "share",
    "passes_share",
    "waiting",
    "predicted_ratio",
    "predicted_ratio_processor",
)
SCALING = "scaling"  # ours in several processes


@dataclass(frozen=True)
class Row:
    """One implementation in one case; seconds are per step.

    Attributes:
        objective, model, batch, precision, compiled, accumulate: of the case.
        implementation: "ours", or a baseline.
        step: wall seconds per step in each round.
        passes: of forward and backward pass alone.
        step_processor, passes_processor: the same in processor time of all threads.
        memory: peak bytes of weights, gradients, optimizer and step; None if unknown.
        predicted_memory: of ours, predicted from sizes alone; None if unknown.
        flop: floating-point operations of our training step, per image; None for baselines.
        peak: floating-point operations a second of the fastest matrix product, right after each round; may be empty.
        predicted: predicted seconds; None for baselines.
        parts: the predicted seconds by kind of work.
        loading: seconds with loading from files; None if not measured.
        devices: processes that shared the batch.
        threads: of each process.
    """

    objective: str
    model: str
    batch: int
    precision: str
    compiled: bool
    accumulate: int
    implementation: str
    step: list[float]
    passes: list[float]
    step_processor: list[float]
    passes_processor: list[float]
    memory: int | None = None
    predicted_memory: int | None = None
    flop: float | None = None
    peak: list[float] = field(default_factory=list)
    predicted: float | None = None
    parts: dict[str, float] = field(default_factory=dict)
    loading: float | None = None
    devices: int = 1
    threads: int = 1

    @property
    def seconds(self) -> float:
        """Median of the whole step."""
        return statistics.median(self.step)

    @property
    def passes_seconds(self) -> float:
        """Median of the forward and backward pass."""
        return statistics.median(self.passes)

    @property
    def passes_processor_seconds(self) -> float:
        """Median of the forward and backward pass, in processor time of all threads."""
        return statistics.median(self.passes_processor)

    @property
    def images_per_second(self) -> float:
        """Images per second of the whole step, without loading."""
        return self.batch / self.seconds

    @property
    def flops(self) -> float | None:
        """Floating-point operations per second of the whole step."""
        return None if self.flop is None else self.flop * self.batch / self.seconds

    @property
    def share(self) -> float | None:
        """Share of the fastest matrix product's rate, of the whole step: the median of the rounds."""
        return self._share(self.step)

    @property
    def passes_share(self) -> float | None:
        """The same of the forward and backward pass alone."""
        return self._share(self.passes)

    def _share(self, seconds: Sequence[float]) -> float | None:
        if self.flop is None or not self.peak:
            return None
        pairs = zip(seconds, self.peak, strict=True)
        return statistics.median(self.flop * self.batch / (one * peak) for one, peak in pairs)

    @property
    def waiting(self) -> float | None:
        """Share of the time with loading that is spent waiting."""
        return None if self.loading is None else max(0.0, 1 - self.seconds / self.loading)

    @property
    def predicted_ratio(self) -> float | None:
        """Predicted over measured seconds."""
        return None if self.predicted is None else self.predicted / self.seconds

    @property
    def predicted_ratio_processor(self) -> float | None:
        """The same over processor seconds per thread, which depend less on other work on the machine."""
        taken = statistics.median(self.step_processor) / self.threads
        return self.predicted / taken if self.predicted is not None and taken else None

    @property
    def case(self) -> tuple[Any, ...]:
        """What all rows of one case share."""
        return self.objective, self.model, self.batch, self.precision, self.compiled, self.accumulate

    @property
    def identity(self) -> tuple[Any, ...]:
        """What is unique to each row of a report."""
        return *self.case, self.implementation, self.devices

    def plain(self) -> dict[str, Any]:
        """For JSON: the fields, and the figures derived from them."""
        return {**asdict(self), **{name: getattr(self, name) for name in DERIVED}}


def of(case: Case, implementation: str, timings: Sequence[Timing], **figures: Any) -> Row:
    """The row of an implementation from its rounds."""
    peaks = [one.peak for one in timings if one.peak is not None]
    return Row(
        objective=case.recipe.objective.name,
        model=case.recipe.model.name,
        batch=case.batch,
        precision=case.recipe.precision,
        compiled=case.compiled,
        accumulate=case.accumulate,
        implementation=implementation,
        step=[one.step.wall for one in timings],
        passes=[one.passes.wall for one in timings],
        step_processor=[one.step.processor for one in timings],
        passes_processor=[one.passes.processor for one in timings],
        peak=peaks if len(peaks) == len(timings) else [],
        **figures,
    )


def over_ours(row: Row, rows: Sequence[Row], figure: str) -> float | None:
    """A baseline's figure over ours in the same case; None for ours itself, or if ours is unknown."""
    ours = next((one for one in rows if one.implementation == OURS and one.devices == 1 and one.case == row.case), None)
    mine, theirs = getattr(row, figure), getattr(ours, figure, None)
    return mine / theirs if row.implementation in BASELINES and mine and theirs else None


def efficiency(row: Row, rows: Sequence[Row]) -> float | None:
    """Images per second per device, over that of the fewest devices measured in this case."""
    same = [one for one in rows if one.implementation == SCALING and one.case == row.case]
    least = min(same, key=lambda one: one.devices, default=None)
    if row.implementation != SCALING or least is None:
        return None
    return row.images_per_second / least.images_per_second * least.devices / row.devices
