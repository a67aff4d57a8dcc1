"""Ctrl-C where Python or a library would lose it."""

import os
import signal
import time

import pytest

from mapet.utils.signals import held, never_lost
from processes import Forked


class Destroyed:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)  # what it raises is dropped


def in_a_destructor():
    Destroyed()
    time.sleep(60)


def in_code_that_translates_errors():
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise ValueError("could not determine the shape") from None


def while_held():
    done = []
    with held():
        signal.raise_signal(signal.SIGINT)
        done.append("both steps")
    raise AssertionError(done)


@pytest.mark.parametrize("lost", [in_a_destructor, in_code_that_translates_errors, while_held])
def test_a_ctrl_c_is_never_lost(tmp_path, lost):
    def work():
        with pytest.raises(KeyboardInterrupt), never_lost():
            lost()
        return 7

    code, _, complaint = Forked(tmp_path, work=work).wait()
    assert (code, complaint) == (7, "")


def test_without_a_ctrl_c_errors_stay_and_handlers_come_back():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="mine"), never_lost():
        raise ValueError("mine")
    with held():
        os.getpid()
    assert signal.getsignal(signal.SIGINT) is before
