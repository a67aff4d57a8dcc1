"""The signals by which a terminal, SLURM and submitit ask a process to stop."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SOON = 0.02  # seconds
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


@contextmanager
def never_lost() -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` for a Ctrl-C also where it would be lost or become another error.

    Python drops what is raised in a destructor, and some C code replaces it by another error.
    """
    came, again, before = list[int](), list[threading.Timer](), sys.unraisablehook

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.default_int_handler(number, frame)

    def once_more(dropped: Any) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            return before(dropped)
        again.append(threading.Timer(SOON, os.kill, (os.getpid(), signal.SIGINT)))
        return again[-1].start()

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler or not _in_main_thread():
        yield
        return
    sys.unraisablehook = once_more
    try:
        with handled(interrupt, [signal.SIGINT]):
            yield
    except Exception as error:
        if came:
            raise KeyboardInterrupt from error
        raise
    finally:
        sys.unraisablehook = before
        for timer in again:
            timer.cancel()


@contextmanager
def held() -> Iterator[None]:
    """Let a Ctrl-C wait until the block ends, for a few short steps that belong together."""
    came = list[int]()
    if not _in_main_thread():
        yield
        return
    with handled(lambda number, _: came.append(number), [signal.SIGINT]):
        yield
    if came:
        signal.raise_signal(signal.SIGINT)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _raise(number: int, frame: FrameType | None) -> None:
    raise Signalled(number)
