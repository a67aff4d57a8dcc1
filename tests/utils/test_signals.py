"""Ctrl-C where Python or a library would lose it."""

import os
import signal
import sys
import threading
import time

import pytest

from mapet.utils.signals import NAMES, Signalled, held, never_lost, raised_signals, stop_signals
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


def test_other_errors_of_destructors_go_the_usual_way(monkeypatch):
    class Broken:
        def __del__(self):
            raise ValueError("dropped")

    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: seen.append(dropped.exc_type))
    hook = sys.unraisablehook
    with never_lost():
        Broken()
    assert seen == [ValueError]
    assert sys.unraisablehook is hook


def test_signals_that_stop_are_raised_but_for_ctrl_c(monkeypatch):
    before = {number: signal.getsignal(number) for number in stop_signals()}
    for number in stop_signals():
        with pytest.raises(KeyboardInterrupt) as caught, raised_signals():
            signal.raise_signal(number)
        assert getattr(caught.value, "number", signal.SIGINT) == number
        assert isinstance(caught.value, Signalled) == (number != signal.SIGINT)
    assert {number: signal.getsignal(number) for number in before} == before


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert [one.name for one in stop_signals()] == [name for name in NAMES if name != "SIGHUP"]
    finally:
        signal.signal(signal.SIGHUP, before)
    assert [one.name for one in stop_signals()] == list(NAMES)


def test_in_another_thread_nothing_is_handled():
    """Python lets only the main thread set handlers."""
    done = []

    def work():
        with never_lost(), held():
            done.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [signal.getsignal(signal.SIGINT)]
