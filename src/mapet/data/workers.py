"""Worker processes that load items ahead of the main process, and what is said when they cannot."""

import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import PicklingError
from types import FrameType, TracebackType
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from mapet.utils.errors import MapetError, reason

T = TypeVar("T")
SHARED = Path("/dev/shm")  # torch hands tensors over through files there
AHEAD = 2  # items that each worker loads ahead
HELD = 2  # items that the main process holds meanwhile
POLL = 5.0  # seconds between two looks at whether the workers live
TIMEOUT = 1800.0  # seconds for one item, which may be thousands of images of a slow disk
GRACE = 15  # seconds that a worker outlives SIGTERM: the main process may still need its items for a last step
LEFT_TO_MAIN = ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
WAYS_OUT = "use --workers 0, give the container more (docker run --shm-size=8g), or pack the images: mapet pack"
LOWER = "lower --workers or --batch-size"
KILLED = f"A loader worker was killed (SIGKILL), most likely because the memory ran out: {LOWER}."
ENDED = f"A loader worker ended, most likely because the memory ran out: {LOWER}."
GUARD = r"__name__\s*==|==\s*__name__|parent_process\("  # in a script that knows where it runs
TIMED_OUT = "DataLoader timed out"
NOT_HANDED = r"pickle|local object"  # what Python says of an object that no other process can be given
HANDOVER = r"received \d+ items of ancdata|unable to open shared memory|Socket Timeout|could not unlink"


class WorkersFailed(MapetError):
    """Loader workers ended or hang; what was written is kept."""


def load(
    items: Dataset[T], groups: Iterable[Any], workers: int, pin: bool = False, item_bytes: int = 0, ranks: int = 1
) -> Iterator[T]:
    """One item per group.

    Args:
        items: computes the item of a group.
        groups: read lazily, ``AHEAD`` for each worker.
        workers: worker processes; 0 loads in this process.
        pin: return tensors in page-locked memory.
        item_bytes: of the tensors of one item, which need as much shared memory.
        ranks: processes of this machine that load in this manner.

    Raises:
        MapetError: too little shared memory (on the call).
        WorkersFailed: a worker ended or hangs (on the way).
    """
    if workers:
        _require_guard()
        _require_shared_memory((workers * AHEAD + HELD) * ranks * item_bytes, workers * ranks)
    loader = DataLoader(
        items,
        batch_size=None,
        sampler=groups,
        num_workers=workers,
        collate_fn=_as_is,
        pin_memory=pin,
        worker_init_fn=_start,
        prefetch_factor=AHEAD if workers else None,
        timeout=min(POLL, TIMEOUT) if workers else 0,
        generator=torch.Generator(),  # it would otherwise draw from torch's global one
    )
    return _guarded(loader)


def _guarded(loader: DataLoader[T]) -> Iterator[T]:
    """The items. A time-out of the loader only means that no item came within ``POLL`` seconds."""
    items, waited = _started(loader), 0.0
    while True:
        try:
            with failures_named():
                item = next(items)
        except StopIteration:
            return
        except RuntimeError as error:
            waited += loader.timeout
            if TIMED_OUT not in str(error):
                raise
            if waited >= TIMEOUT:
                raise WorkersFailed(f"The loader workers gave no batch for {waited:g} seconds: {WAYS_OUT}.") from None
        except (ConnectionError, EOFError, FileNotFoundError):  # while a batch was handed over
            raise WorkersFailed(ENDED) from None
        else:
            waited = 0.0
            yield item


def _started(loader: DataLoader[T]) -> Iterator[T]:
    """The iterator, which starts the workers; all but forked ones are given a pickled copy of the dataset."""
    try:
        return iter(loader)
    except (AttributeError, TypeError, PicklingError) as error:
        if not re.search(NOT_HANDED, str(error)):
            raise
        raise MapetError(
            f"The dataset cannot be given to loader workers ({reason(error)}): use --workers 0, or define its class at "
            "the top level of a module and open files, locks and connections in read."
        ) from None


@contextmanager
def failures_named() -> Iterator[None]:
    """Turn torch's report of a dead worker, which it may raise anywhere in the main process, into ``WorkersFailed``."""
    try:
        yield
    except RuntimeError as error:
        if (named := workers_failed(error)) is not None:
            raise named from None
        raise


def workers_failed(error: RuntimeError) -> WorkersFailed | None:
    """The error for torch's report of a dead worker; None if it reports something else."""
    text = str(error)
    if re.search(HANDOVER, text):
        return WorkersFailed(ENDED)
    if not re.search(r"DataLoader worker \(pid", text):
        return None
    found = re.search(r"killed by signal: ([^.]+?)\.", text)
    if found is None or found[1].startswith("Killed"):
        return WorkersFailed(KILLED if found else ENDED)
    return WorkersFailed(
        f"A loader worker was ended by a signal ({found[1]}), perhaps as {SHARED} is full: {WAYS_OUT}."
    )


def _require_guard() -> None:
    """Refuse to start workers that would import, and so run, the whole script of the user again.

    Raises:
        MapetError: Python starts processes anew here (``spawn``, ``forkserver``), and the script has no guard.
    """
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    if method == "fork" or script is None or sys.modules["__main__"].__spec__ is not None:
        return
    with suppress(OSError, UnicodeDecodeError):
        if not re.search(GUARD, Path(script).read_text(encoding="utf-8")):
            raise MapetError(
                f"Loader workers import {script} again, as multiprocessing starts them by {method}, and would run "
                'all of it: put its calls below a line if __name__ == "__main__": or use --workers 0.'
            )


def _require_shared_memory(needed: int, workers: int) -> None:
    """Refuse to start workers whose batches do not fit into shared memory, where they would wait for ever."""
    if not needed or not SHARED.is_dir() or sys.platform != "linux":
        return
    status = os.statvfs(SHARED)
    free = status.f_bavail * status.f_frsize
    if free < needed:
        raise MapetError(
            f"{SHARED} has {free >> 20} MiB free, but {workers} loader workers need {-(-needed >> 20)} MiB there for "
            f"the batches that they load ahead: {WAYS_OUT}."
        )


def _as_is(item: Any) -> Any:
    return item


def _start(worker: int) -> None:
    """Leave signals to the main process, which a terminal or SLURM sends to all; it shuts down in order."""
    for number in (getattr(signal, name) for name in LEFT_TO_MAIN if hasattr(signal, name)):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, _end_later)
    sys.excepthook = _report_error


def _end_later(number: int, frame: FrameType | None) -> None:
    signal.alarm(GRACE)


def _report_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error, except that the main process ended while this worker handed over a batch."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)
