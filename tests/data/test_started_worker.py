"""A loader worker leaves signals to the main process."""

import os
import signal

import pytest

from mapet.data.workers import GRACE, LEFT_TO_MAIN, _start
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
