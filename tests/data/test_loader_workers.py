"""Loader workers leave signals to the main process, which waits for them, but not for ever."""

import os
import signal
from types import SimpleNamespace

import pytest

from mapet.data import workers
from mapet.data.workers import GRACE, LEFT_TO_MAIN, _start
from mapet.utils.errors import MapetError
from processes import Forked


def after(number):
    """Work that ends with the seconds that the worker has left after the signal; 0: as many as it likes."""

    def work():
        _start(0)
        os.kill(os.getpid(), number)
        return signal.alarm(0)

    return work


@pytest.mark.parametrize("name", [*LEFT_TO_MAIN, "SIGTERM"])
def test_a_worker_goes_on_after_signals_but_not_long_after_sigterm(tmp_path, name):
    """The system sends SIGTERM to all; the main process may need further batches until its checkpoint."""
    code, said, complaint = Forked(tmp_path, work=after(getattr(signal, name))).wait()
    assert (code, said, complaint) == (int(GRACE) if name == "SIGTERM" else 0, "", "")


class Loader:
    """Items that come after so many time-outs of five seconds each."""

    timeout = 5.0

    def __init__(self, *late):
        self.left = list(late)

    def __iter__(self):
        return self

    def __next__(self):
        if not self.left:
            raise StopIteration
        if self.left[0]:
            self.left[0] -= 1
            raise RuntimeError("DataLoader timed out after 5 seconds")
        return self.left.pop(0)


def test_a_worker_may_be_late_as_long_as_each_item_comes_in_time(monkeypatch):
    monkeypatch.setattr(workers, "TIMEOUT", 15.0)
    assert list(workers._guarded(Loader(0, 2, 2, 0))) == [0, 0, 0, 0]
    items = workers._guarded(Loader(2, 3, 0))
    assert next(items) == 0
    with pytest.raises(workers.WorkersFailed, match="gave no batch for 15 seconds"):
        next(items)


@pytest.mark.parametrize(("count", "ranks", "batches"), [(1, 1, 4), (2, 1, 6), (2, 2, 12)])
def test_batches_that_lie_in_shared_memory(monkeypatch, tmp_path, count, ranks, batches):
    """Each worker loads two ahead while the main process holds two; the processes of one machine share it."""
    monkeypatch.setattr(workers.sys, "platform", "linux")
    monkeypatch.setattr(workers, "SHARED", tmp_path)
    monkeypatch.setattr(workers.os, "statvfs", lambda _: SimpleNamespace(f_bavail=batches, f_frsize=1 << 20))
    workers.load([], [], count, item_bytes=1 << 20, ranks=ranks)
    said = f"{batches} MiB free, but {count * ranks} loader workers need {batches + 1} MiB"
    with pytest.raises(MapetError, match=said):
        workers.load([], [], count, item_bytes=(1 << 20) + 1, ranks=ranks)
    workers.load([], [], 0, item_bytes=1 << 40)
