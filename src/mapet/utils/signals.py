"""The signals by which a terminal, SLURM and submitit ask a training to stop."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")  # Windows has the first two


class Signalled(KeyboardInterrupt):
    """A signal came where nothing has to be finished."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.number = number


def stop_signals() -> list[signal.Signals]:
    """The signals that stop a training on this system; not SIGHUP where it is ignored, as under nohup."""
    known = [signal.Signals[name] for name in NAMES if hasattr(signal, name)]
    return [one for one in known if one.name != "SIGHUP" or signal.getsignal(one) != signal.SIG_IGN]


@contextmanager
def handled(handle: Callable[[int, FrameType | None], None], numbers: list[signal.Signals]) -> Iterator[None]:
    """Handle signals by ``handle``; the earlier handlers come back at the end."""
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def raised_signals() -> Iterator[None]:
    """Raise ``Signalled`` at the signals that would otherwise end this process without a word; Ctrl-C stays."""
    with handled(_raise, [number for number in stop_signals() if number != signal.SIGINT]):
        yield


def _raise(number: int, frame: FrameType | None) -> None:
    raise Signalled(number)
