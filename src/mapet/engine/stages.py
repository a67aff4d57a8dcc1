"""Progress of work in stages: what is shown of it, and how long each stage took."""

import time
from collections import defaultdict
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from mapet.engine.progress import Meter


class StageProgress:
    """Shows the progress of one stage after another.

    Attributes:
        done: units of work by stage.
        seconds: time spent by stage.

    Args:
        show: whether anything is shown; time is measured in any case.
    """

    def __init__(self, show: bool = True) -> None:
        self.done, self.seconds = defaultdict[str, int](int), defaultdict[str, float](float)
        self._show, self._stage, self._began = show, "", time.monotonic()
        self._meters = ExitStack()
        self._meter: Meter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._meters.close()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` units of ``stage`` are finished."""
        from mapet.engine.progress import Meter

        if stage != self._stage:
            self._meters.close()
            self._began += self.seconds.get(self._stage, 0.0)
            self._stage = stage
            self._meter = self._meters.enter_context(Meter(stage, total)) if self._show else None
        self.done[stage], self.seconds[stage] = done, time.monotonic() - self._began
        if self._meter is not None and self._meter.due(done):
            self._meter.update(done)
