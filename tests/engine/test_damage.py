"""Damaged and missing files of a run folder, a full disk, and what kills leave."""

import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import textwrap

import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import save_file

from mapet.engine import checkpoint as files
from mapet.engine.fit import fit
from mapet.engine.generations import _state
from mapet.engine.run import Run, load_checkpoint
from mapet.utils.errors import MapetError
from toy import Numbers, Toy, optim


def train(run, steps=20, save_every=0):
    toy = Toy()
    fit(toy, Numbers(steps), optim(toy), Fabric(accelerator="cpu", devices=1), run, seed=7, save_every=save_every)
    return torch.cat([parameter.detach().flatten() for parameter in toy.parameters()])


def flip(path, position=-9, bit=4):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(bytes(content))


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run")


@pytest.mark.parametrize("damage", [flip, cut, lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(tmp_path, run, damage, caplog):
    whole = Run.create(tmp_path / "whole")
    straight = train(whole)
    train(run, 15)
    assert run.completed == 15
    damage(run.checkpoints / "last.safetensors")
    with caplog.at_level(logging.INFO, "mapet"):
        assert run.completed == 10
        assert run.last.name == "previous.safetensors"
    (line,) = (record.getMessage() for record in caplog.records)
    assert "last.safetensors is" in line
    assert "previous.safetensors of step 10 is used instead" in line
    assert torch.equal(straight, train(run))
    assert whole.metrics.read_bytes() == run.metrics.read_bytes()
    assert run.last.name == "last.safetensors"


def test_the_newest_valid_checkpoint_is_used(run):
    train(run, save_every=6)
    flip(run.checkpoints / "last.safetensors")
    assert run.last.name == "previous.safetensors"
    flip(run.checkpoints / "previous.safetensors")
    assert run.last.name == "step-00000018.safetensors"
    flip(run.checkpoints / "step-00000018.safetensors")
    assert run.completed == 12
    for path in run.checkpoints.glob("step*"):
        cut(path)
    with pytest.raises(MapetError, match=r"last.safetensors is not a readable checkpoint"):
        train(run)


def test_a_checkpoint_that_was_cut_is_one_plain_line(run):
    train(run, 5)
    cut(run.last)
    with pytest.raises(MapetError) as refused:
        load_checkpoint(run.checkpoints / "last.safetensors")
    assert "last.safetensors is not a readable checkpoint (not a whole safetensors file, " in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_damaged_checkpoint_never_replaces_the_valid_one_before(run):
    train(run, 10)
    flip(run.checkpoints / "last.safetensors")
    assert run.completed == 5
    run.save(6, load_checkpoint(run.last)[1])
    assert load_checkpoint(run.checkpoints / "previous.safetensors")[0] == 5
    assert run.completed == 6


def test_every_flipped_bit_is_noticed(run, tmp_path):
    run.save(3, {"model/x": torch.arange(6.0), "y": torch.tensor(2, dtype=torch.bfloat16)})
    content = run.last.read_bytes()
    path = tmp_path / "one.safetensors"
    for position in range(len(content)):
        for bit in (0, 1, 6):
            path.write_bytes(content)
            flip(path, position, bit)
            try:
                found = files.Checkpoint(path)
                found.verify()
            except MapetError:
                continue
            tensors = found.read_all()
            assert found.step == 3
            assert torch.equal(tensors["model/x"], torch.arange(6.0))
            assert tensors["y"] == 2


def test_a_checkpoint_of_version_0_1_is_read(run):
    run.checkpoints.mkdir()
    metadata = {"format": "mapet-checkpoint-1", "step": "4"}
    save_file({"x": torch.ones(2)}, run.checkpoints / "last.safetensors", metadata)
    assert run.completed == 4
    assert torch.equal(load_checkpoint(run.last)[1]["x"], torch.ones(2))


def test_values_that_are_not_finite_are_named(run):
    run.save(1, {"model/encoder.norm.weight": torch.tensor([1.0, float("nan")])})
    with pytest.raises(MapetError, match=r"last.safetensors is damaged: model/encoder.norm.weight has values"):
        files.Checkpoint(run.last).read_finite("model/encoder.norm.weight")


def test_what_a_kill_leaves_is_deleted_and_nothing_else(run):
    train(run, 5)
    left = [run.checkpoints / ".tmpAb12Cd", run.checkpoints / "last.partial", run.folder / "seconds.json.part"]
    foreign = [run.folder / "thesis.part", run.checkpoints / ".tmpfiles-of-mine"]
    for path in (*left, *foreign):
        path.write_text("x")
    run.clean()
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in foreign)


def test_all_files_have_the_same_permissions(run):
    train(run, 10, save_every=5)
    paths = [path for path in run.folder.rglob("*") if path.is_file()]
    expected = 0o666 & ~_umask()
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {expected}


def _umask():
    os.umask(found := os.umask(0))
    return found


@pytest.mark.parametrize("content", [b"", b'{"step": 1', b"\xff\xfe", b"[]", b"null", b'{"step": 0, "seconds": 1}'])
def test_damaged_side_files_do_not_stop_a_run(run, content):
    train(run, 10)
    for name in ("seconds.json", "provenance.json", "scores.json"):
        (run.folder / name).write_bytes(content)
    run.write_provenance()
    assert len(json.loads((run.folder / "provenance.json").read_text())) == 1
    assert not run.scores or content == b'{"step": 0, "seconds": 1}'
    train(run, 20)
    assert run.completed == 20


FULL = """
    import sys
    sys.path.insert(0, {tests!r})
    import torch
    from test_damage import Run, MapetError, train
    run = Run.create({folder!r} + "/run")
    train(run, 5)
    room = open({folder!r} + "/filler", "wb")
    try:
        while room.write(bytes(4096)):
            room.flush()
    except OSError:
        pass
    try:
        {act}
    except MapetError as error:
        print(error.option_text)
    print(sorted(path.name for path in run.checkpoints.iterdir()), run.completed)
"""


def on_full_disk(folder, act):
    """Output lines of a script whose disk, of 1 MiB, gets full after step 5."""
    tests = os.path.dirname(__file__)
    script = textwrap.dedent(FULL).format(tests=tests, folder=str(folder), act=act)
    path = os.pathsep.join([*filter(None, sys.path), os.path.dirname(tests)])
    user = [] if os.getuid() == 0 else ["-Ur"]
    mount = f'mount -t tmpfs -o size=1m tmpfs {folder} || exit 77; exec {sys.executable} -c "$SCRIPT"'
    if not shutil.which("unshare") or subprocess.run(["unshare", *user, "-m", "true"], check=False).returncode:
        pytest.skip("no mount namespaces here")
    done = subprocess.run(
        ["unshare", *user, "-m", "sh", "-c", mount],
        env={**os.environ, "PYTHONPATH": path, "SCRIPT": script},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip("no file system can be mounted here")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.splitlines()


def test_a_full_disk_at_a_checkpoint_is_one_line(tmp_path):
    act = 'run.save(6, {"x": torch.zeros(1000000)})'
    line, left = on_full_disk(tmp_path, act)
    assert "last.safetensors could not be written: the disk is full. Free some space" in line
    assert left == "['last.safetensors'] 5"


def test_a_full_disk_in_training_is_one_line(tmp_path):
    line, left = on_full_disk(tmp_path, "train(run, 20)")
    assert "could not be written: the disk is full. Free some space" in line
    assert left == "['last.safetensors'] 5"


def test_scores_that_cannot_be_saved_are_a_note(tmp_path, monkeypatch, caplog):
    from mapet.api import evaluate

    def read_only(path, entry):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(evaluate, "append", read_only)
    with caplog.at_level(logging.INFO, "mapet"):
        assert evaluate.saved(tmp_path / "scores.json", {}) is None
    assert "could not be saved" in caplog.text
    assert "Read-only file system" in caplog.text


@pytest.mark.parametrize("content", [b"", b'[{"proto', b"\xff", b"{}"])
def test_damaged_scores_do_not_end_a_fine_tuning(run, content):
    from mapet.api.finetune_inputs import record

    (run.folder / "scores.json").write_bytes(content)
    record(run, {"protocol": "finetune", "step": 3, "data": "x"}, {})
    record(run, {"protocol": "finetune", "step": 3, "data": "x"}, {})
    assert run.scores == [{"protocol": "finetune", "step": 3, "data": "x"}]


def test_metrics_without_a_checkpoint_are_refused(run):
    from mapet.api.training import _require_checkpoint

    _require_checkpoint(run)
    train(run, 5)
    _require_checkpoint(run)
    (run.checkpoints / "last.safetensors").unlink()
    with pytest.raises(MapetError, match="has metrics but no checkpoint any more"):
        _require_checkpoint(run)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]"])
def test_damaged_inputs_and_classifiers_are_one_line(run, content):
    from mapet.api.inputs import _inputs
    from mapet.build.finetune import shaped

    for name in ("inputs.json", "classifier.json"):
        (run.folder / name).write_bytes(content)
    with pytest.raises(MapetError, match=r"inputs.json is damaged"):
        _inputs(run.folder / "inputs.json")
    with pytest.raises(MapetError, match=r"classifier.json is damaged"):
        shaped(run)


@pytest.mark.parametrize(
    ("damage", "missing"),
    [
        (lambda content: content[:-20], 1),
        (lambda content: b"\xff\xfe" + content, 10),
        (lambda content: b"", 10),
        (lambda content: content.replace(b"\n3,", b"\nx,"), 1),
        (lambda content: content[:60] + b"\xb5" + content[61:], 1),
        (lambda content: None, 10),
    ],
)
def test_holes_in_the_metrics_are_logged(run, damage, missing, caplog):
    """The weights do not depend on them; the other rows stay."""
    train(run, 10)
    rows = run.metrics.read_bytes().splitlines()
    damaged = damage(run.metrics.read_bytes())
    run.metrics.unlink() if damaged is None else run.metrics.write_bytes(damaged)
    with caplog.at_level(logging.INFO, "mapet"):
        train(run, 15)
    assert "metrics.csv lacks the step" in caplog.text
    found = run.metrics.read_bytes().splitlines()
    assert len(found) == 1 + 15 - missing
    assert found[0] == rows[0]
    assert set(found[1:-5]) <= set(rows)


def test_a_changed_part_of_a_checkpoint_is_seen(tmp_path):
    """Of one in parts as of one in one file: what was verified once is verified again."""
    (tmp_path / files.INDEX).write_text(json.dumps({"files": ["part.safetensors"]}))
    (part := tmp_path / "part.safetensors").write_bytes(b"12345678")
    for path in (tmp_path, tmp_path / files.INDEX, part):
        part.write_bytes(b"12345678")
        before = _state(path)
        assert _state(path) == before
        part.write_bytes(b"123456789")
        assert _state(path) != before
    part.unlink()
    assert _state(part) == ()
    assert len(_state(tmp_path)) == 1


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (OSError(28, "No space left on device"), "the disk is full"),
        (OSError(122, "Disk quota exceeded"), "the disk is full"),
        (files.SafetensorError("Io error: something (os error 28)"), "the disk is full"),
        (OSError(5, "Input/output error"), "Input/output error"),
    ],
)
def test_a_checkpoint_that_cannot_be_written_is_one_line_and_leaves_no_part(run, monkeypatch, error, why):
    run.save(1, {"x": torch.ones(2)})
    before = {path.name for path in run.checkpoints.iterdir()}

    def fail(path, *_):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(files, "_write", fail)
    with pytest.raises(MapetError, match="could not be written: ") as stop:
        run.save(2, {"x": torch.ones(2)})
    assert f"could not be written: {why}. Free some space, then continue with resume" in str(stop.value)
    assert {path.name for path in run.checkpoints.iterdir()} == before
    assert run.completed == 1
