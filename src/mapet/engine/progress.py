"""Progress of long work: a bar on a terminal (rich.progress), a few plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

REFRESH = 0.25  # seconds between two updates of the bar
BAR = 40  # columns of the longest bar
NARROW = 10  # columns below which no bar is drawn
LINES = 5  # plain lines for a whole task
QUIET = 20.0  # seconds between two plain lines, at least
SPEED_PERIOD = 1e9  # seconds over which the speed is averaged: the whole task


class Meter:
    """Progress of ``total`` units of work.

    ``with Meter(label, total) as meter: … if meter.due(done): meter.update(done, text)``; ``due`` keeps a cheap step
    from building a text that is not shown.

    Args:
        label: name of the task.
        total: units of work, at least 1.
        done: units that were finished before.
        stream: where to show it; stderr by default.
    """

    def __init__(self, label: str, total: int, done: int = 0, stream: TextIO | None = None) -> None:
        self.label, self.total = label, total
        self.console = Console(file=stream or sys.stderr, highlight=False)
        self.bar = BarColumn()
        self.columns = (
            TextColumn("{task.description}", markup=False),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            TextColumn("{task.fields[text]}", markup=False),
        )
        self.progress = Progress(
            self.columns[0],
            self.bar,
            *self.columns[1:],
            console=self.console,
            auto_refresh=False,
            transient=True,
            speed_estimate_period=SPEED_PERIOD,
            disable=not self.console.is_terminal,
        )
        self.task = self.progress.add_task(label, total=total, completed=done, text="", left="-:--")
        self.progress.advance(self.task, 0)  # the first sample of the speed
        self.shown, self.lines = time.monotonic(), LINES * done // max(1, total)

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def due(self, done: int) -> bool:
        """Whether ``update`` would show anything now."""
        if self.console.is_terminal:
            return time.monotonic() - self.shown > REFRESH or done == self.total
        return LINES * done // self.total > self.lines and time.monotonic() - self.shown > QUIET

    def update(self, done: int, text: str = "", position: str = "") -> None:
        """Show that ``done`` units are finished, with ``text``, and ``position`` before it if there is room for both.

        A bar is drawn if there is room for it, too.
        """
        self.progress.update(self.task, completed=done)
        seconds = self.progress.tasks[0].time_remaining
        left = "-:--" if seconds is None else clock(seconds)
        room = self.console.width - len(f"{self.label} 100% {left} {text}")
        if not self.console.is_terminal or room > len(position) + 2:
            text, room = f"{position}  {text}" if position else text, room - len(position) - 2
        self.bar.bar_width = min(BAR, room - 1)
        self.progress.columns = self.columns if room <= NARROW else (self.columns[0], self.bar, *self.columns[1:])
        self.progress.update(self.task, text=text if room >= 0 else text.replace("  ", " "), left=left, refresh=True)
        self.shown, self.lines = time.monotonic(), LINES * done // self.total
        if not self.console.is_terminal:
            line = f"{self.label} {100 * done // self.total:3d} %  {clock(seconds or 0.0)} left  {text}".rstrip()
            self.console.print(line, soft_wrap=True, markup=False)


def clock(seconds: float) -> str:
    """125.0 → "2:05"; 3725.0 → "1:02:05"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
