"""What a waiting person sees: one line that changes on a terminal, a few plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

REFRESH = 0.25  # seconds between two changes of the line
MARKS = 5  # plain lines for a whole task, where it is long
QUIET = 20.0  # seconds of work for which a plain screen stays silent


class Meter:
    """Progress of ``total`` units of work: a context manager with ``update``.

    The text is made only when it will be shown, so a cheap step stays cheap.
    """

    def __init__(self, label: str, total: int, done: int = 0, stream: TextIO | None = None) -> None:
        self.label, self.total, self.first = label, total, done
        self.console = Console(file=stream or sys.stderr, highlight=False)
        self.live = Live(console=self.console, auto_refresh=False, transient=True)
        self.began = self.shown = time.monotonic()
        self.marks = MARKS * done // max(1, total)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def due(self, done: int) -> bool:
        """Whether ``update`` would show anything now."""
        if self.console.is_terminal:
            return time.monotonic() - self.shown > REFRESH or done == self.total
        return MARKS * done // self.total > self.marks and time.monotonic() - self.shown > QUIET

    def update(self, done: int, text: str = "") -> None:
        """Show that ``done`` units are finished."""
        line = f"{self.label} {100 * done // self.total:3d} %  {self.left(done)} left  {text}".rstrip()
        self.shown, self.marks = time.monotonic(), MARKS * done // self.total
        if self.console.is_terminal:
            self.live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
        else:
            self.console.print(line, soft_wrap=True)

    def left(self, done: int) -> str:
        """Time left at the pace so far, as h:mm:ss or m:ss."""
        pace = (time.monotonic() - self.began) / max(1, done - self.first)
        return clock(pace * (self.total - done))


def clock(seconds: float) -> str:
    """125.0 → "2:05"; 3725.0 → "1:02:05"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
