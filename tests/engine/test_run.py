import json
import logging
import os
import re

import pytest
import torch
from safetensors.torch import save_file

from mapet.engine.checkpoint import Checkpoint
from mapet.engine.distributed import init_fabric
from mapet.engine.run import Run, load_checkpoint
from mapet.utils.errors import MapetError
from mapet.utils.log import log


def test_a_folder_in_use_is_refused_with_the_ways_out(tmp_path):
    thesis = tmp_path / "thesis.tex"
    thesis.write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(MapetError, match="is not empty and holds no run: give another out"):
            Run.create(tmp_path, overwrite=overwrite)
        with pytest.raises(MapetError, match="is a file: give another out"):
            Run.create(thesis, overwrite=overwrite)
    assert thesis.read_text() == "years of work"
    Run.create(tmp_path / "run").recipe.write_text("data: x\n")
    with pytest.raises(MapetError, match=r"resume .*overwrite"):
        Run.create(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("thesis.tex", r"holds thesis\.tex, which mapet did not write, so nothing is replaced"),
        ("recipe.yaml", "has no mark that mapet wrote a .* there, so nothing is replaced"),  # a folder that is no run
    ],
)
def test_what_mapet_did_not_write_is_never_moved(tmp_path, name, said):
    folder = tmp_path / "run"
    if name == "thesis.tex":
        Run.create(folder).recipe.write_text("data: x\n")
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("years of work")
    (folder / "recipe.yaml").touch()
    before = {path.name for path in folder.iterdir()}
    with pytest.raises(MapetError, match=said):
        Run.create(folder, overwrite=True)
    assert {path.name for path in folder.iterdir()} == before
    assert (folder / name).read_text() == "years of work"


def test_a_folder_whose_name_is_no_text_is_not_locked(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(MapetError, match=r"caf\\udce9 is not UTF-8, so weights in it could not be read"):
        Run(folder).lock()
    assert not folder.exists()


def test_overwrite_clears_an_earlier_run(tmp_path):
    run = Run.create(tmp_path / "run")
    run.recipe.write_text("data: x\n")
    run.append_metrics([{"step": 1, "loss": 2.0}])
    new = Run.create(tmp_path / "run", overwrite=True)
    assert not new.metrics.exists()
    assert list(new.folder.glob(".mapet-replaced/metrics.csv")), "until the new one trains"
    new.append_metrics([{"step": 1, "loss": 3.0}])
    assert {path.name for path in new.folder.iterdir()} == {".mapet", "metrics.csv"}


def test_a_folder_is_locked_while_it_is_overwritten(tmp_path):
    run = Run.create(tmp_path / "run")
    run.recipe.write_text("data: x\n")
    with run.lock():
        with pytest.raises(MapetError, match=f"Another process is training in {run.folder}"):
            Run(run.folder).lock()
        assert Run.create(run.folder, overwrite=True).folder == run.folder
        with pytest.raises(MapetError, match="Another process is training in"):
            Run(run.folder).lock()
        run.append_metrics([{"step": 1, "loss": 2.0}])
        run.metrics.unlink()
        assert Run.create(run.folder).folder == run.folder, "neither a lock nor a mark is content"


def test_not_a_run(tmp_path):
    with pytest.raises(MapetError, match="holds no run"):
        Run.open(tmp_path)


def test_other_files_are_no_checkpoints(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"nothing of the kind")
    save_file({"x": torch.zeros(1)}, tmp_path / "b.safetensors")
    for name in ("a.safetensors", "b.safetensors", "absent.safetensors"):
        with pytest.raises(MapetError, match=name):
            load_checkpoint(tmp_path / name)


def test_a_save_cut_short_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    run = Run.create(tmp_path / "run")
    run.save(3, {"x": torch.ones(2)})

    def power_cut(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", power_cut)
    with pytest.raises(KeyboardInterrupt):
        run.save(4, {"x": torch.zeros(2)})
    step, tensors = load_checkpoint(run.last)
    assert step == 3
    assert torch.equal(tensors["x"], torch.ones(2))


@pytest.mark.parametrize("tail", ["", "6,0.", "6,0.5\n7,0.4\n8"])
def test_metrics_are_trimmed_to_whole_rows_up_to_the_step(tmp_path, tail):
    run = Run.create(tmp_path / "run")
    run.append_metrics([{"step": step, "loss": 1 / step} for step in range(1, 6)])
    before = run.metrics.read_text()
    run.metrics.write_text(before + tail)
    run.trim_metrics(5)
    assert run.metrics.read_text() == before
    run.trim_metrics(2)
    assert run.metrics.read_text() == "".join(before.splitlines(keepends=True)[:3])


def test_provenance_holds_no_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    monkeypatch.setattr("sys.argv", ["/any/where/mapet", "pretrain", "IMAGES", "--epochs", "3"])
    run = Run.create(tmp_path / "run")
    run.write_provenance()
    run.write_provenance()
    entries = json.loads((run.folder / "provenance.json").read_text())
    assert len(entries) == 2
    assert entries[1]["command"] == "mapet pretrain IMAGES --epochs 3"
    assert entries[0]["versions"]["torch"] == torch.__version__.split("+")[0]
    assert "hunter2" not in (run.folder / "provenance.json").read_text()


def test_log_messages_are_copied_with_the_time(tmp_path):
    run, level = Run.create(tmp_path / "run"), log.level
    with run.logging():
        log.info("rate 1e-3")
    log.info("after the run")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  rate 1e-3\n", run.log.read_text())
    assert (log.level, log.propagate) == (level, True)


def test_only_the_first_process_writes_the_log(tmp_path, monkeypatch):
    run = Run.create(tmp_path / "run")
    for rank in ("1", "0"):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", rank)
        with run.logging():
            log.info("by rank %s", rank)
            logging.getLogger("lightning_fabric").warning("Fabric's rank %s", rank)
    lines = [line.split("  ")[1] for line in run.log.read_text().splitlines()]
    assert lines == ["by rank 0", "Fabric's rank 0"]


def test_a_run_that_was_moved_aside_for_nothing_is_back_before_the_next_one(tmp_path):
    run = Run.create(tmp_path / "run")
    run.recipe.write_text("data: x\n")
    run.append_metrics([{"step": 1, "loss": 2.0}])
    earlier = run.metrics.read_bytes()
    Run.create(tmp_path / "run", overwrite=True)  # and interrupted before its first step
    with pytest.raises(MapetError, match="resume"):
        Run.create(tmp_path / "run")
    assert run.metrics.read_bytes() == earlier


def test_a_run_without_a_checkpoint_has_no_steps(tmp_path):
    run = Run.create(tmp_path / "run")
    assert (run.completed, run.checkpoint, run.scores, run.seconds(3)) == (0, None, [], 0)
    run.save(4, {"x": torch.ones(2)})
    assert (run.completed, run.checkpoint.step) == (4, 4)


def test_lines_of_lightning_go_to_the_log_of_the_run_alone(tmp_path, capfd):
    run = Run.create(tmp_path / "run")
    with run.logging():
        init_fabric(accelerator="cpu", precision="bfloat16")
    assert "Mixed Precision" in run.log.read_text()
    assert capfd.readouterr() == ("", "")


def test_the_files_of_a_run(tmp_path):
    run = Run(tmp_path)
    found = {name: path.relative_to(tmp_path).as_posix() for name, path in vars(run).items() if name != "folder"}
    assert found == {
        "recipe": "recipe.yaml",
        "classifier": "classifier.json",
        "segmenter": "segmenter.json",
        "metrics": "metrics.csv",
        "log": "log.txt",
        "checkpoints": "checkpoints",
        "unreadable_images": "unreadable-images.txt",
    }


def test_weights_that_are_no_checkpoint_are_named(tmp_path):
    save_file({"x": torch.ones(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(MapetError, match="is a safetensors file but not a checkpoint of a run: give the run's folder"):
        Checkpoint(tmp_path / "weights.safetensors")


def test_messages_that_nobody_listens_to_go_to_the_file_alone(tmp_path, caplog):
    run, before = Run.create(tmp_path / "run"), (log.level, log.propagate)
    log.setLevel(logging.WARNING)
    try:
        with run.logging():
            log.info("a note")
        assert (log.level, log.propagate) == (logging.WARNING, before[1])
    finally:
        log.setLevel(before[0])
    assert run.log.read_text().endswith("  a note\n")
    assert "a note" not in caplog.messages
