"""What is shown while long work runs."""

import io

import pytest

from mapet.engine import progress, stages
from mapet.engine.progress import Meter, clock
from mapet.engine.stages import StageProgress


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


def test_a_long_plain_line_is_not_cut(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    stream = io.StringIO()
    with Meter("pack", 3, stream=stream) as meter:
        meter.update(3, "3 img/s " * 20)
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().count("3 img/s") == 20


def test_short_work_prints_nothing_off_a_terminal():
    stream = io.StringIO()
    with Meter("pack", 3, stream=stream) as meter:
        assert not any(map(meter.due, (1, 2, 3)))
    assert stream.getvalue() == ""


def test_brackets_are_no_markup(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    with Meter("[bold]pack", 3, stream=stream) as meter:
        meter.update(3, "[red]x")
    assert "[bold]pack" in stream.getvalue()
    assert "[red]x" in stream.getvalue()


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


def test_stages_follow_each_other_and_each_is_timed(monkeypatch):
    now, events = [100.0], []

    class Recorded(Meter):
        def __init__(self, label, total):
            super().__init__(label, total, stream=io.StringIO())

        def due(self, done):
            return done % 2 == 0

        def update(self, done, text=""):
            events.append((self.label, done, self.total))

        def __exit__(self, *reason):
            events.append(f"end of {self.label}")

    monkeypatch.setattr(progress, "Meter", Recorded)
    monkeypatch.setattr(stages.time, "monotonic", lambda: now[0])
    with StageProgress() as shown:
        for seconds, stage, done in ((2, "features", 2), (1, "features", 3), (4, "k-means", 4)):
            now[0] += seconds
            shown(stage, done, 9)
    assert events == [("features", 2, 9), "end of features", ("k-means", 4, 9), "end of k-means"]
    assert shown.seconds == {"features": 3, "k-means": 4}
    assert shown.done == {"features": 3, "k-means": 4}
    with StageProgress(show=False) as silent:
        silent("features", 2, 9)
    assert (len(events), silent.done) == (4, {"features": 2})


def test_work_that_was_done_before_counts():
    meter = Meter("pack", 10, 4, io.StringIO())
    assert [(task.completed, task.total) for task in meter.progress.tasks] == [(4, 10)]


@pytest.mark.parametrize(("short", "text"), [(0, "a  b"), (1, "a b")])
def test_double_spaces_are_closed_up_when_the_line_is_full(monkeypatch, short, text):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(len("pack 100% -:-- a  b") - short))
    with Meter("pack", 3, stream=io.StringIO()) as meter:
        meter.update(1, "a  b")
        assert meter.progress.tasks[0].fields["text"] == text


@pytest.mark.parametrize("more", [0, 1, 100])
def test_a_bar_is_drawn_where_the_line_leaves_room_for_it(monkeypatch, more):
    line = "pack 100% -:-- step 1/3  loss 1"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(len(line) + progress.NARROW + more))
    with Meter("pack", 3, stream=io.StringIO()) as meter:
        meter.update(1, "loss 1", "step 1/3")
        assert (meter.bar in meter.progress.columns) == bool(more)
        assert meter.bar.bar_width == min(progress.BAR, progress.NARROW + more - 1)
        assert meter.progress.tasks[0].fields["text"] == "step 1/3  loss 1"


@pytest.mark.parametrize(("more", "text"), [(0, "loss 1"), (1, "step 1/3  loss 1")])
def test_the_position_is_shown_where_the_line_leaves_room_for_it(monkeypatch, more, text):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(len("pack 100% -:-- step 1/3  loss 1") + more))
    with Meter("pack", 3, stream=io.StringIO()) as meter:
        meter.update(1, "loss 1", "step 1/3")
        assert meter.progress.tasks[0].fields["text"] == text


def test_the_speed_is_measured_from_the_start():
    assert [sample.completed for sample in Meter("pack", 3, 1, io.StringIO()).progress.tasks[0]._progress] == [0]


def test_a_bar_is_gone_when_the_work_is_done(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert Meter("pack", 3, stream=io.StringIO()).progress.live.transient


def test_the_time_left_is_told_as_soon_as_there_is_a_speed(monkeypatch):
    meter, now = Meter("pack", 10, stream=io.StringIO()), [0.0]
    for task in meter.progress.tasks:
        task._get_time = lambda: now[0]
        task._progress.clear()
    monkeypatch.setattr(meter.progress, "get_time", lambda: now[0])
    assert meter.progress.tasks[0].fields["left"] == "-:--"
    meter.progress.advance(meter.task, 0)
    now[0] = 30.0
    meter.update(2)
    assert meter.progress.tasks[0].fields["left"] == "2:00"


def test_work_of_one_unit_or_none_has_a_meter():
    assert Meter("pack", 1, 1, io.StringIO()).lines == progress.LINES
    assert Meter("pack", 0, 0, io.StringIO()).lines == 0


def test_nothing_is_drawn_between_two_updates():
    assert not Meter("pack", 3, stream=io.StringIO()).progress.live.auto_refresh
