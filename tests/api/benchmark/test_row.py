"""What follows from a round's times, and that rounds alternate."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mapet.api.benchmark import report, step
from mapet.api.benchmark.row import SCALING, Row, efficiency, over_ours

OURS = Row("mapet", "vit_tiny", 8, "float32", False, 1, "ours", [2, 1, 9], [1, 0.5, 8], [4, 2, 18], [2, 1, 16])
OURS = replace(OURS, flop=3.0, peak=[24.0, 48.0, 2.0], predicted=1.5, loading=4.0, threads=2, memory=100)


def test_figures_of_a_row():
    assert (OURS.seconds, OURS.passes_seconds, OURS.images_per_second) == (2, 1, 4)
    assert OURS.flops == 12
    assert (OURS.share, OURS.passes_share) == (0.5, 1.0)
    assert OURS.waiting == 0.5
    assert (OURS.predicted_ratio, OURS.predicted_ratio_processor) == (0.75, 0.75)
    assert Row(**{name: value for name, value in OURS.plain().items() if name in vars(OURS)}) == OURS


def test_ratios_are_within_a_case():
    dense = replace(OURS, implementation="dense", step=[6.0], memory=50, flop=None, predicted=None)
    other = replace(OURS, batch=16, step=[60.0])
    assert over_ours(dense, [other, OURS, dense], "seconds") == 3
    assert over_ours(dense, [other, OURS, dense], "memory") == 0.5
    assert over_ours(OURS, [OURS], "seconds") is None
    assert over_ours(dense, [other], "seconds") is None
    assert (dense.flops, dense.share, dense.predicted_ratio) == (None, None, None)


def test_efficiency_is_over_the_fewest_processes():
    one, four = (replace(OURS, implementation=SCALING, devices=n, step=[s]) for n, s in ((1, 8.0), (4, 4.0)))
    assert efficiency(four, [OURS, one, four]) == pytest.approx(0.5)
    assert efficiency(one, [OURS, one, four]) == 1
    assert efficiency(OURS, [OURS, one, four]) is None
    two = replace(four, devices=2)
    assert efficiency(four, [four, two]) == pytest.approx(0.5)


def test_a_line_fits_the_screen():
    wide = replace(OURS, step=[123.4567], passes=[123.4567], flop=1e15, peak=[1e13], memory=80 << 30, loading=500.0)
    rows = [
        wide,
        replace(wide, implementation="transformers", step=[1234.56]),
        replace(wide, implementation=SCALING, devices=4),
    ]
    for row in rows:
        assert len(report.line(row, rows)) <= len(report.HEADER) <= 80


def test_rounds_alternate_and_short_steps_are_repeated(monkeypatch):
    done = []

    class Fake:
        def __init__(self, name, broadcast=lambda counts: counts):
            self.name, self.fabric = name, SimpleNamespace(broadcast=broadcast)

        def step(self, timer):
            done.append(self.name)
            timer.mark()
            timer.mark()

    monkeypatch.setattr(step, "ROUND", {"cpu": 0.0})
    timings = step.alternate([Fake("a"), Fake("b")], 3, torch.device("cpu"))
    assert done == ["a", "b"] * 4
    assert [len(own) for own in timings] == [3, 3]
    assert all(one.step.wall >= one.passes.wall >= 0 for own in timings for one in own)
    monkeypatch.setattr(step, "ROUND", {"cpu": 1e-3})
    done.clear()
    step.alternate([Fake("a")], 1, torch.device("cpu"))
    assert len(done) > 2
    done.clear()
    step.alternate([Fake("a", lambda counts: [5])], 1, torch.device("cpu"))  # what the first process has counted
    assert len(done) == 1 + 5
