"""Logs per-step metrics to metrics.csv and TensorBoard; aborts on NaN or Inf."""

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from torch import Tensor

from mapet.engine.metrics_file import WINDOW
from mapet.engine.run import Run
from mapet.utils.errors import MapetError, reason
from mapet.utils.log import log

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mapet.engine.tracker import Track

T = TypeVar("T")
Row = dict[str, float | None]  # one step; None: the step was skipped
DELAY = 10  # steps whose metrics stay on an accelerator, so that a step does not wait for them


class MetricsLogger:
    """Collects the metrics of each step, averaged over all processes; rank 0 writes them.

    On a CPU a step is checked for NaN and Inf before the weights are updated; on an accelerator at most ``DELAY`` steps
    later, and always before a checkpoint is written.
    """

    def __init__(
        self, run: Run, fabric: "Fabric", steps_per_epoch: int, start: int, track: "Track | None" = None
    ) -> None:
        self.track = track
        self.run, self.fabric, self.steps_per_epoch, self.good = run, fabric, steps_per_epoch, start
        self.names: list[str] = []
        self.pending: list[tuple[int, float, Tensor | None]] = []
        self.rows: deque[dict[str, float]] = deque(maxlen=WINDOW)
        self.delay = 1 if fabric.device.type == "cpu" else DELAY
        self.images, self.waited, self.since = 0, 0.0, time.monotonic()
        self.started, self.waited_in_all = self.since - run.seconds(start), run.seconds(start, "waited")
        self.writer: Any = None
        self.skipped = 0

    def __enter__(self) -> Self:
        if self.fabric.is_global_zero:
            from torch.utils.tensorboard import SummaryWriter

            self.run.trim_metrics(self.good)
            self.writer = SummaryWriter(self.run.folder / "tensorboard", purge_step=self.good + 1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.writer:
            with suppress(OSError):
                self.writer.close()
        if self.skipped:
            log.info(f"skipped   {self.skipped:,} steps, none of whose images could be read")

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches; counts the time that the step waits for them."""
        while True:
            before = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            waited = time.monotonic() - before
            self.waited, self.waited_in_all = self.waited + waited, self.waited_in_all + waited
            yield batch

    def record(self, step: int, lr: float, metrics: Mapping[str, Tensor], images: int) -> None:
        """Add the scalars of one step; raises as ``flush``."""
        self.names = list(metrics)
        values = torch.stack([metric.detach().float() for metric in metrics.values()])
        self.pending.append((step, lr, values))
        self.images += images * self.fabric.world_size
        if len(self.pending) >= self.delay:
            self.flush()

    def skip(self, step: int, lr: float, names: Iterable[str]) -> None:
        """Add a step without images: a row whose scalars are empty."""
        self.names = list(names)
        self.pending.append((step, lr, None))
        self.skipped += 1

    def flush(self) -> None:
        """Write the pending rows.

        Raises:
            MapetError: a metric is NaN or infinite; the rows before it are written.
        """
        if not self.pending:
            return
        pending, self.pending = self.pending, []
        known = [values for _, _, values in pending if values is not None]
        table = iter(self.fabric.all_reduce(torch.stack(known), reduce_op="mean").tolist() if known else [])
        rows = [self._row(step, lr, None if values is None else next(table)) for step, lr, values in pending]
        bad = next((row for row in rows if not all(math.isfinite(value or 0) for value in row.values())), None)
        self._write(rows[: rows.index(bad)] if bad else rows)
        if bad:
            self._abort(bad)

    def recent(self) -> dict[str, float]:
        """Mean of each metric over the last ``WINDOW`` steps."""
        return {name: sum(row[name] for row in self.rows) / len(self.rows) for name in self.rows[-1]}

    def pace(self) -> str:
        """Images per second and share of the time spent waiting for data, since the last call."""
        seconds = time.monotonic() - self.since
        text = f"{self.images / seconds:.0f} img/s  wait {100 * self.waited / seconds:.0f} %"
        self.images, self.waited, self.since = 0, 0.0, time.monotonic()
        return text

    def position(self, step: int, steps: int) -> str:
        """The epoch and the step, of all."""
        epoch, epochs = (1 + (number - 1) // self.steps_per_epoch for number in (step, steps))
        return f"epoch {epoch:,}/{epochs:,}  step {step:,}/{steps:,}"

    def note_time(self, step: int) -> None:
        """Store the training time so far, including the time before an interruption."""
        if self.fabric.is_global_zero:
            self.run.note_seconds(step, time.monotonic() - self.started, self.waited_in_all)

    def _row(self, step: int, lr: float, values: list[float] | None) -> Row:
        epoch = 1 + (step - 1) // self.steps_per_epoch
        scalars = dict.fromkeys(self.names) if values is None else dict(zip(self.names, values, strict=True))
        return {"step": step, "epoch": epoch, "lr": lr, **scalars}

    def _write(self, rows: list[Row]) -> None:
        complete = ({name: value for name, value in row.items() if value is not None} for row in rows)
        self.rows.extend(row for row in complete if self.names[0] in row)
        if rows and self.fabric.is_global_zero:
            self.run.append_metrics(rows)
            for row in rows:
                found = {name: value for name, value in row.items() if value is not None}
                if self.track is not None:
                    self.track(int(found["step"]), found)
            try:
                for row in rows if self.writer else ():
                    for name in ("lr", *self.names):
                        if row[name] is not None:
                            self.writer.add_scalar(name, row[name], row["step"])
            except OSError as error:  # as a full disk, met in its thread
                log.info(f"note      tensorboard/ is not written any more ({reason(error)}); metrics.csv is")
                self.writer = None

    def _abort(self, row: Row) -> None:
        values = ", ".join(f"{name} {row[name]}" for name in self.names if not math.isfinite(row[name] or 0))
        saved = self.run.checkpoint
        kept = f"The checkpoint of step {saved.step} is kept: {saved.path}." if saved else "No checkpoint exists yet."
        raise MapetError(
            f"Training stopped at step {row['step']}: {values}. {kept} "
            "Try a lower --lr, more --warmup-epochs or --precision float32."
        )
