"""Holes, doubles and damaged lines of metrics.csv are noticed, and never end a run."""

import logging

import pytest
import torch

from mapet.engine.metrics_file import fault, recent_means, trim
from mapet.engine.run import Run

HEADER = "step,epoch,loss\n"


def rows(*steps):
    return "".join(f"{step},1,0.{step}\n" for step in steps)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.csv"


@pytest.mark.parametrize(
    ("content", "left", "note"),
    [
        (HEADER + rows(1, 2, 3, 4), rows(1, 2, 3), ""),
        (HEADER + rows(1, 2, 3) + "4,1", rows(1, 2, 3), ""),
        (HEADER + rows(1, 3), rows(1, 3), "lacks the step 2"),
        (HEADER + rows(1), rows(1), "lacks the steps 2-3"),
        (HEADER + rows(1, 2, 2, 3), rows(1, 2, 3), "has the step 2 more than once"),
        (HEADER + rows(1, 1, 3), rows(1, 3), "lacks the step 2 and has the step 1 more than once"),
        (HEADER + rows(1) + "2,1,0.x\n" + rows(3), rows(1, 3), "lacks the step 2"),
        (HEADER + rows(1) + "2,1\n" + rows(3), rows(1, 3), "lacks the step 2"),
        (HEADER + rows(1) + "2,1,\n" + rows(3), rows(1) + "2,1,\n" + rows(3), ""),
        (HEADER + "0,1,0.0\n" + rows(1, 2, 3), rows(1, 2, 3), ""),
        (HEADER + "1,1\n" + rows(2, 3), rows(2, 3), "lacks the step 1"),
        (HEADER, "", "lacks the steps 1-3"),
        ("sxep,epoch,loss\n" + rows(1, 2, 3), None, "lacks the steps 1-3"),
    ],
)
def test_rows_are_trimmed_and_faults_named(path, content, left, note):
    path.write_text(content)
    assert fault(path, 3) == note
    assert trim(path, 3) == note
    assert path.read_text() == ("" if left is None else HEADER + left)
    assert recent_means(path)[1].get("epoch", 1) == 1


def test_many_holes_are_counted(path):
    path.write_text(HEADER + rows(*range(1, 30, 2)))
    assert fault(path, 30) == "lacks the steps 2, 4, 6, 8, 10 and 10 more"


def test_without_a_file_all_steps_lack(path):
    assert trim(path, 2) == "lacks the steps 1-2"
    assert trim(path, 0) == ""
    assert not path.exists()


def test_bytes_that_are_not_text_are_no_row(path):
    path.write_bytes((HEADER + rows(1)).encode() + b"\xff\xfe,1,2\n" + rows(2).encode())
    assert trim(path, 2) == ""
    assert path.read_text() == HEADER + rows(1, 2)


def test_a_changed_figure_is_noticed_at_a_resume(tmp_path, caplog):
    run = Run.create(tmp_path)
    run.recipe.write_text("seed: 1\n")
    run.append_metrics([{"step": step, "loss": 1 / step} for step in range(1, 5)])
    run.save(4, {"x": torch.ones(1)})
    run.append_metrics([{"step": 5, "loss": 0.2}])
    with caplog.at_level(logging.INFO, "mapet"):
        run.trim_metrics(4)
        assert not caplog.records
        run.metrics.write_text(run.metrics.read_text().replace("0.25", "0.35"))
        run.trim_metrics(4)
    assert caplog.messages == [f"note      {run.metrics} was changed after it was written"]


def test_recent_means_are_of_the_last_steps_that_had_images(tmp_path):
    path = tmp_path / "metrics.csv"
    assert recent_means(path) == (0, {})
    path.write_text("step,epoch,lr,loss\n1,1,0.1,9\n2,1,0.1,4\n3,2,0.3,\n4,2,0.3,8\n")
    assert recent_means(path, 2) == (2, {"step": 3, "epoch": 1.5, "lr": pytest.approx(0.2), "loss": 6})
    assert recent_means(path)[0] == 3
    assert recent_means(path)[1]["loss"] == 7
