"""A checkpoint in parts, one file per process, reads as the whole; and what surrounds a step in one process."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mapet.engine import checkpoint, memory, saving
from mapet.engine.checkpoint import Checkpoint, exists, remove, write_parts
from mapet.engine.generations import require_valid
from mapet.engine.peak import peak, reset_peak
from mapet.engine.run import Run
from mapet.utils.errors import MapetError

WHOLE = {"rows": torch.arange(21.0).view(7, 3), "one": torch.tensor([4.0]), "scalar": torch.tensor(2.5)}


def write(folder, step=5, count=3, copies=()):
    """Every process's part; that of rank 0 last, as the others are waited for."""
    size = -(-7 // count)
    for rank in reversed(range(count)):
        rows = {name: WHOLE[name][rank * size : (rank + 1) * size] for name in ("rows", "one")}
        own = {**rows, "scalar": WHOLE["scalar"]} if rank == 0 else rows
        write_parts(folder, step, own, rank=rank, count=count, barrier=lambda: None, copies=copies)


def test_any_rows_of_the_parts_are_those_of_the_whole(tmp_path):
    write(tmp_path / "last", copies=(tmp_path / "step-00000005",))
    for path in (tmp_path / "last", tmp_path / "step-00000005"):
        found = Checkpoint(path)
        found.verify()
        assert found.step == 5
        assert found.shapes == {name: tuple(tensor.shape) for name, tensor in WHOLE.items()}
        for start in range(8):
            assert torch.equal(found.read("rows", start), WHOLE["rows"][start:])
            for stop in range(8):
                assert torch.equal(found.read("rows", start, stop), WHOLE["rows"][start:stop])
        assert all(torch.equal(tensor, WHOLE[name]) for name, tensor in found.read_all().items())


def test_later_saves_by_fewer_processes_keep_the_one_before_and_nothing_older(tmp_path):
    for step, count in ((5, 3), (6, 2), (7, 1)):
        write(tmp_path, step=step, count=count)
    before = [f"00000006-{rank:05d}-of-00002.safetensors" for rank in range(2)]
    now = ["00000007-00000-of-00001.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*before, *now, "index.json", "previous.json"]
    assert json.loads((tmp_path / "index.json").read_text())["files"] == now
    assert (Checkpoint(tmp_path).step, Checkpoint(tmp_path / "previous.json").step) == (7, 6)


def test_a_part_of_another_step_is_refused(tmp_path):
    write(tmp_path)
    index = tmp_path / "index.json"
    index.write_text(index.read_text().replace('"step": 5', '"step": 4'))
    with pytest.raises(MapetError, match="has step 5, the index has step 4"):
        Checkpoint(tmp_path)
    index.write_text(index.read_text().replace("checkpoint-2", "checkpoint-9"))
    with pytest.raises(MapetError, match="unknown format mapet-checkpoint-9"):
        Checkpoint(tmp_path)


def test_a_folder_is_a_checkpoint_once_it_has_an_index(tmp_path):
    folder = tmp_path / "last"
    write_parts(folder, 5, {"rows": WHOLE["rows"]}, rank=1, count=2, barrier=lambda: None)
    assert not exists(folder)
    write(folder)
    assert exists(folder)
    remove(folder)
    remove(folder)
    assert not folder.exists()


def test_parts_replace_a_file_and_a_file_replaces_parts(tmp_path):
    run = Run.create(tmp_path / "run")
    run.save(1, WHOLE)
    run.save_parts(2, WHOLE, rank=0, count=1, barrier=lambda: None, keep=True)
    assert {path.name for path in run.checkpoints.iterdir()} == {"last", "last.safetensors", "step-00000002"}
    assert (run.last.name, run.completed) == ("last", 2)
    run.save_parts(3, WHOLE, rank=0, count=1, barrier=lambda: None, keep=False)
    assert {path.name for path in run.checkpoints.iterdir()} == {"last", "step-00000002"}
    for step in (4, 5):
        run.save(step, WHOLE)
        assert run.completed == step
    names = {"last.safetensors", "previous.safetensors", "step-00000002"}
    assert {path.name for path in run.checkpoints.iterdir()} == names


def test_what_this_process_has_written_is_not_read_again(tmp_path, monkeypatch):
    run = Run.create(tmp_path / "run")
    monkeypatch.setattr(Checkpoint, "verify", lambda self: pytest.fail("it was read"))
    for step in (1, 2):
        run.save(step, WHOLE)
        assert run.completed == step
    assert not list(run.checkpoints.glob("step-*"))
    for step in (3, 4):
        run.save_parts(step, WHOLE, rank=0, count=1, barrier=lambda: None, keep=False)
        assert run.completed == step


def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_afterwards(tmp_path, monkeypatch):
    run, done, replace = Run.create(tmp_path / "run"), [], os.replace

    def renamed(old, new):
        done.append(f"{Path(new).name} named")
        replace(old, new)

    run.append_metrics([{"step": 1, "loss": 0.5}])
    for module in (checkpoint, saving):
        monkeypatch.setattr(module, "sync", lambda path: done.append(path.name))
    monkeypatch.setattr(os, "replace", renamed)
    run.save(1, WHOLE, keep=True)
    copy = "step-00000001"
    assert done == [
        "metrics.csv", "last.partial", f"{copy}.partial", f"{copy}.safetensors named", "checkpoints",
        "last.safetensors named", "checkpoints",
    ]  # fmt: skip


def test_what_cannot_be_read_any_more_is_one_line(tmp_path, monkeypatch):
    run = Run.create(tmp_path / "run")
    run.save(1, WHOLE)
    opened = Checkpoint(run.last)

    def gone(*_):
        raise OSError(5, "Input/output error")

    require_valid(run.last)
    monkeypatch.setattr(checkpoint, "fingerprint", gone)
    with pytest.raises(MapetError, match=r"last.safetensors is not a readable checkpoint \(Input/output error\)"):
        opened.verify()
    run.last.write_bytes(run.last.read_bytes() + b"x")  # not as it was when it was found valid
    with pytest.raises(MapetError, match="not a readable checkpoint"):
        require_valid(run.checkpoints / "last.safetensors")


@pytest.mark.parametrize("names", [[], ["../other.safetensors"]])
def test_an_index_without_parts_is_one_line(tmp_path, names):
    write(tmp_path / "last")
    index = json.loads((tmp_path / "last" / checkpoint.INDEX).read_text())
    (tmp_path / "last" / checkpoint.INDEX).write_text(json.dumps({**index, "files": names}))
    with pytest.raises(MapetError, match=r"not a readable checkpoint \(it names no files\)"):
        Checkpoint(tmp_path / "last")


def test_memory_of_a_gpu_that_torch_holds_but_does_not_use_is_available(monkeypatch):
    for name, value in {"mem_get_info": (100, 200), "memory_reserved": 30, "memory_allocated": 7}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert memory.available(torch.device("cuda")) == 123
    assert memory.available(torch.device("mps")) is None


def test_unused_memory_is_given_back(monkeypatch):
    asked = []
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: SimpleNamespace(malloc_trim=asked.append))
    memory.give_back()
    assert asked == [0]
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: SimpleNamespace())  # as of macOS
    memory.give_back()


def test_the_peak_of_a_process_is_in_bytes_and_begins_anew():
    device = torch.device("cpu")
    reset_peak(device)
    before = peak(device)
    block = torch.ones(1 << 26)  # 256 MiB
    during = peak(device)
    assert 0.9 * 2**28 < during - before < 2**29
    del block
    reset_peak(device)
    assert peak(device) < during - 2**27


def test_what_a_kill_leaves_of_checkpoints_is_deleted(tmp_path):
    write(tmp_path / "last")
    whole = {path.name for path in (tmp_path / "last").iterdir()}
    partial = [f"{name}{end}" for name, end in ((checkpoint.INDEX, ".part"), (checkpoint.BEFORE, ".part"))]
    for name in (*partial, "mine.txt"):
        for folder in (tmp_path, tmp_path / "last"):
            (folder / name).touch()
    saving.clean_up(tmp_path)
    assert {path.name for path in (tmp_path / "last").iterdir()} == {*whole, "mine.txt"}
    assert {path.name for path in tmp_path.iterdir()} == {"last", "mine.txt"}
