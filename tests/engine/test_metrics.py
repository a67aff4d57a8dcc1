"""What is noted of each step: metrics.csv, TensorBoard, and the text of the progress line."""

import csv
import io
import re
from types import SimpleNamespace

import pytest
import torch
from lightning_fabric import Fabric
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mapet.engine import metrics as module
from mapet.engine import progress
from mapet.engine.fit import fit
from mapet.engine.metrics import MetricsLogger
from mapet.engine.progress import Meter
from mapet.engine.run import Run
from toy import Numbers, Toy, optim


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def logger(tmp_path, clock):
    return MetricsLogger(Run.create(tmp_path / "run"), Fabric(accelerator="cpu", devices=1), 5, 0)


def scalars(loss):
    return {"loss": torch.tensor(float(loss)), "accuracy": torch.tensor(loss / 100)}


def test_tensorboard_has_the_numbers_of_the_file(tmp_path):
    run, toy = Run.create(tmp_path / "run"), Toy()
    fit(toy, Numbers(steps=11), optim(toy), Fabric(accelerator="cpu", devices=1), run)
    rows = list(csv.DictReader(run.metrics.open()))
    assert [int(row["step"]) for row in rows] == list(range(1, 12))
    assert [int(row["epoch"]) for row in rows] == [1] * 5 + [2] * 5 + [3]
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    assert {*events.Tags()["scalars"]} == {*rows[0]} - {"step", "epoch"} == {"lr", "loss", "error", "grad_norm"}
    for name in events.Tags()["scalars"]:
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        assert shown == [(int(row["step"]), pytest.approx(float(row[name]))) for row in rows]


def test_tensorboard_that_fails_is_left_after_one_note(logger, caplog):
    tried = []

    def full(*given):
        tried.append(given)
        raise OSError(28, "No space left on device")

    with caplog.at_level("INFO", "mapet"), logger:
        logger.writer.add_scalar = full
        for step in (1, 2, 3):
            logger.record(step, 0.1, scalars(step), images=4)
    assert len(tried) == 1
    assert caplog.text.count("tensorboard/ is not written any more (No space left on device); metrics.csv is") == 1
    assert len(list(csv.DictReader(logger.run.metrics.open()))) == 3


def test_recent_metrics_are_means_of_the_last_fifty_steps(logger):
    with logger:
        for step in range(1, 61):
            logger.record(step, 0.1, scalars(step), images=4)
    assert logger.recent() == pytest.approx({"step": 35.5, "epoch": 7.5, "lr": 0.1, "loss": 35.5, "accuracy": 0.355})


def test_pace_is_that_since_the_last_call(logger, clock):
    def slow():
        for seconds in (1.0, 3.0):
            clock[0] += seconds
            yield seconds

    for _ in logger.timed(slow()):
        clock[0] += 6
        logger.record(1, 0.1, scalars(1), images=40)
    assert logger.pace() == "5 img/s  wait 25 %"
    clock[0] += 2
    assert logger.pace() == "0 img/s  wait 0 %"
    logger.note_time(2)
    assert logger.run.seconds(2) == 18
    later = MetricsLogger(logger.run, logger.fabric, 5, 1)
    clock[0] += 1
    later.note_time(4)
    assert later.run.seconds(4) == 10  # 9 of the first step, and 1
    assert later.run.seconds(4, "waited") == 2  # half of 4 seconds in two steps


def test_the_pace_is_that_of_all_processes(tmp_path, clock):
    fabric = SimpleNamespace(device=torch.device("cuda"), world_size=3)
    logger = MetricsLogger(Run.create(tmp_path / "run"), fabric, 5, 0)
    clock[0] += 4
    logger.record(1, 0.1, scalars(1), images=20)
    assert logger.pace() == "15 img/s  wait 0 %"


def test_an_accelerator_is_asked_every_ten_steps(logger, monkeypatch):
    logger.delay = module.DELAY
    written = []
    monkeypatch.setattr(logger.run, "append_metrics", lambda rows: written.append(len(rows)))
    for step in range(1, 26):
        logger.record(step, 0.1, scalars(step), images=1)
    logger.flush()
    logger.flush()
    assert written == [10, 10, 5]


def test_a_bar_is_drawn_four_times_a_second_and_at_the_end(monkeypatch, clock):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with Meter("pack", 30) as meter:
        assert not meter.due(1)
        clock[0] += 0.3
        assert meter.due(1)
        meter.update(1)
        assert not meter.due(2)
        assert meter.due(30)


def test_lines_are_a_fifth_of_the_work_and_twenty_seconds_apart(monkeypatch, clock):
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with Meter("pack", 10) as meter:
        assert not meter.due(2)
        clock[0] += 20.5
        assert not meter.due(1)
        assert meter.due(2)
        meter.update(2)
        assert not meter.due(10)
        clock[0] += 20.5
        assert [meter.due(done) for done in (3, 4)] == [False, True]


class Terminal(io.StringIO):
    """A stream that says that it is one."""

    def isatty(self):
        return True


@pytest.mark.parametrize("width", range(60, 220, 7))
def test_a_line_has_its_end_and_the_time_at_any_width(monkeypatch, clock, width):
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    shown = Terminal()
    text = "loss 2.745  tokens 9.2% (guess 3.1%)  456 img/s  wait 8 %"
    with Meter("pretrain", 400, stream=shown) as meter:
        for done in (100, 200):
            clock[0] += 100
            meter.update(done, text, "epoch 100/200  step 200/400")
        lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue()).splitlines()
    last = next(line.rstrip() for line in reversed(lines) if line.strip())
    assert len(last) <= width
    if width >= 79:
        assert last.replace("  ", " ").endswith(text.replace("  ", " "))
        assert " 50% " in last
    assert ("epoch 100/200  step 200/400" in last) == (width >= 109)
    bar = len(re.findall("[━╸╺]", last))
    assert 10 <= bar <= 40 if bar else width < 120
    assert len(last) >= width - 1 or bar in (0, 40)


def test_the_first_pace_counts_the_images_since_the_start(logger, clock):
    logger.record(1, 0.1, scalars(1), images=40)
    clock[0] += 8
    assert logger.pace() == "5 img/s  wait 0 %"
    logger.record(2, 0.1, scalars(1), images=2)
    clock[0] += 5
    assert logger.pace() == "0 img/s  wait 0 %"


def test_the_first_pace_counts_no_more_than_the_images(logger, clock):
    logger.record(1, 0.1, scalars(1), images=2)
    clock[0] += 5
    assert logger.pace() == "0 img/s  wait 0 %"


def test_the_last_step_of_an_epoch_belongs_to_it(logger):
    assert logger.position(1, 10) == "epoch 1/2  step 1/10"
    assert logger.position(5, 10) == "epoch 1/2  step 5/10"
    assert logger.position(6, 1_000) == "epoch 2/200  step 6/1,000"
