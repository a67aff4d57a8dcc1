"""What is shown while long work runs."""

import io

import pytest

from mapet.engine import progress
from mapet.engine.progress import Meter, clock


def test_plain_lines_tell_share_and_time_left(monkeypatch):
    monkeypatch.setattr(progress, "QUIET", 0.0)
    stream = io.StringIO()
    with Meter("pack", 10, 2, stream) as meter:
        shown = [done for done in range(3, 11) if meter.due(done) and not meter.update(done, "[x] 3 img/s")]
    lines = stream.getvalue().splitlines()
    assert shown == [4, 6, 8, 10]
    assert lines[0].startswith("pack  40 %  0:0")
    assert lines[-1].startswith("pack 100 %")
    assert all(line.endswith("[x] 3 img/s") for line in lines)


def test_short_work_prints_nothing_off_a_terminal():
    stream = io.StringIO()
    with Meter("pack", 3, stream=stream) as meter:
        assert not any(map(meter.due, (1, 2, 3)))
    assert stream.getvalue() == ""


def test_a_terminal_shows_one_line(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    with Meter("pack", 3, stream=stream) as meter:
        assert meter.due(3)
        meter.update(3, "loss 1.000")
    assert "pack" in stream.getvalue()
    assert "loss 1.000" in stream.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (125, "2:05"), (3725, "1:02:05")])
def test_a_clock(seconds, text):
    assert clock(seconds) == text
