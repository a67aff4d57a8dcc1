"""Time spent: on the wall, and of this process's threads together; on a GPU between events that it stamps itself."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

RESOLUTION = 1e-6  # seconds, so that nothing takes no time
SHORT = 0.02  # seconds below which a piece of work is repeated for one timing


class Spent(NamedTuple):
    """Seconds on the wall, and of all this process's threads together (less touched by what else is running)."""

    wall: float
    processor: float


def synchronize(device: torch.device) -> None:
    """Wait until the device has done everything that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Timer:
    """Marks between pieces of work; nothing waits for a GPU until ``spent`` asks."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[tuple[float, float, Any]] = []

    def mark(self) -> None:
        """Here one piece of work ends, or the first begins."""
        event = None
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
        self.marks.append((time.perf_counter(), time.process_time(), event))

    def spent(self) -> list[Spent]:
        """What lies between each two marks."""
        synchronize(self.device)
        return [
            Spent(first[2].elapsed_time(second[2]) / 1000 if first[2] else second[0] - first[0], second[1] - first[1])
            for first, second in zip(self.marks, self.marks[1:], strict=False)
        ]


def timed(work: Callable[[], object], device: torch.device, seconds: float) -> list[float]:
    """Seconds of each call of ``work``, called for about ``seconds`` after two calls that do not count.

    Seconds on the wall; with one thread of a CPU the processor's, which other work on the machine lengthens less.
    A call that is shorter than ``SHORT`` is repeated, and the mean of the repetitions is one entry.
    """
    work()
    once = _run(work, device, 1)
    times = max(1, math.ceil(SHORT / once))
    rounds = max(3, math.ceil(seconds / (once * times)))
    return [_run(work, device, times) for _ in range(rounds)]


def _run(work: Callable[[], object], device: torch.device, times: int) -> float:
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    synchronize(device)
    began = clock()
    for _ in range(times):
        work()
    synchronize(device)
    return max(clock() - began, RESOLUTION) / times
