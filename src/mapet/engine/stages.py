"""Work in stages: what a waiting person sees of it, and how long each stage took."""

import time
from collections import defaultdict
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from mapet.engine.progress import Meter


class Stages:
    """Shows one stage after another, and keeps how much was done in each and its seconds.

    Args:
        shown: whether anything is shown.
    """

    def __init__(self, shown: bool = True) -> None:
        self.shown, self.done, self.seconds = shown, defaultdict[str, int](int), defaultdict[str, float](float)
        self.stack, self.now, self.began = ExitStack(), "", time.monotonic()
        self.meter: Meter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()

    def __call__(self, what: str, done: int, total: int) -> None:
        """``done`` of ``total`` units of ``what`` are finished."""
        from mapet.engine.progress import Meter

        if what != self.now:
            self.stack.close()
            self.began += self.seconds.get(self.now, 0.0)
            self.now, self.meter = what, self.stack.enter_context(Meter(what, total)) if self.shown else None
        self.done[what], self.seconds[what] = done, time.monotonic() - self.began
        if self.meter is not None and self.meter.due(done):
            self.meter.update(done)
