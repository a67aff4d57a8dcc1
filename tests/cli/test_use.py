"""``mapet embed``, ``neighbours`` and ``predict``: what they print and write, and memory that does not grow."""

import csv
import io
import itertools
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from forms import MODEL, as_finetuning, in_all_forms
from mapet.api import journal
from mapet.cli import main
from mapet.config.recipe import Model, Recipe
from processes import Forked, stopping

GROWTH = """
from peak import memory, reset_peak
from mapet.cli import main
def peak(images, name):
    before = reset_peak()
    assert main(["embed", "run", images, "--out", name, "--pool", "patches", "--batch-size", "32"]) == 0
    return memory("VmHWM") - before
peak("few", "0.npz")
print("growth", peak("few", "1.npz"), peak("many", "many.npz"))
"""


@pytest.fixture(scope="module")
def desk(images, tmp_path_factory):
    root = tmp_path_factory.mktemp("commands")
    in_all_forms(Recipe(model=MODEL), root)
    as_finetuning(root / "classifier", ["across", "along"])
    (root / "images").symlink_to(images)
    return root


@pytest.fixture(autouse=True)
def here(desk, monkeypatch):
    monkeypatch.chdir(desk)


def test_what_is_printed_and_written(desk, capsys, tmp_path):
    assert main(["embed", "run", "images", "--out", str(tmp_path / "f.npz"), "--pool", "patches"]) == 0
    assert capsys.readouterr().out == f"48 images × 16 × 16 in {tmp_path / 'f.npz'}\n"
    assert main(["embed", "run", "images", "--out", str(tmp_path / "f.npz"), "--overwrite"]) == 0
    with np.load(tmp_path / "f.npz") as file:
        assert file["features"].shape == (48, 16)
    sheet = str(tmp_path / "s.png")
    capsys.readouterr()
    assert (
        main(["neighbours", "run", "images/along/03.png", "--in", str(tmp_path / "f.npz"), "--k", "3", "--out", sheet])
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1.0000  along/03.png"
    assert (len(lines), lines[-1]) == (4, f"sheet in {sheet}")
    assert main(["predict", "classifier", "images", "--out", str(tmp_path / "p.csv")]) == 0
    assert capsys.readouterr().out == f"48 predictions in {tmp_path / 'p.csv'}\n"
    assert main(["predict", "classifier", "images/along/03.png", "--top-k", "1"]) == 0
    out = capsys.readouterr().out
    with (tmp_path / "p.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["image"] == "along/03.png")
    assert out == f"images/along/03.png  {row['class_1']} {100 * float(row['probability_1']):.1f} %\n"


@pytest.mark.parametrize("end", ["\r\n", "\n", "\0"])
def test_paths_on_standard_input(desk, capsys, tmp_path, monkeypatch, end):
    names = ["images/along/03.png", "missing.png", "images/across/00.png"]
    text = "".join(f"{name}{end}" for name in names).encode()
    for verb, source, out in (("predict", "classifier", "p.csv"), ("embed", "run", "f.npz")):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text)))
        assert main([verb, source, "-", "--out", str(tmp_path / out)]) == 0
        assert "1 of 3 images are unreadable" in capsys.readouterr().out
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == names
    assert rows[1] == {
        **dict.fromkeys(rows[1], ""),
        "image": names[1],
        "unreadable": "unreadable: No such file or directory",
    }
    with np.load(tmp_path / "f.npz") as file:
        assert file["image_ids"].tolist() == [names[0], names[2]]


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("predict run images", "fine-tune it first (mapet finetune run --data LABELLED --out RUN), or"),
        ("predict classifier", "mapet predict needs IMAGES: mapet predict CLASSIFIER IMAGES [--out FILE]"),
        ("predict classifier images --top-k 0", "--top-k must be >= 1, got 0."),
        ("predict nothing images", "CLASSIFIER = nothing does not exist"),
        ("validate nothing --data images", "CLASSIFIER = nothing does not exist"),
        ("reveal run images/along/03.png --out r.png --accelerator tpu", "--accelerator must be one of auto, cpu"),
        ("predict classifier nowhere", 'There is no folder "nowhere"'),
        ("embed run images --out f.npy", "A file of features ends in .npz or .parquet, got f.npy."),
        ("embed run images --out f.npz --pool layers", "--pool must be one of avg, token, avg+token, patches"),
        ("embed run images --out f.npz --layer 9", "--layer must be <= 2, the number of FROM's blocks, got 9."),
        ("embed nothing images --out f.npz", "FROM = nothing does not exist"),
        ("neighbours run images/along/03.png", "mapet neighbours needs --in"),
        ("neighbours run images/along/03.png --in nothing.npz", "There is no file nothing.npz: write one"),
        ("neighbours run images/along/03.png --in classifier/classifier.json", "A file of features ends in"),
        ("predict classifier images more", 'Unexpected "more"'),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(command, line, capsys):
    assert main(command.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("mapet: ")
    assert said.count("\n") == 1
    assert line in said


def test_no_standard_input(desk, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["predict", "classifier", "-"]) == 2
    assert "IMAGES is -, and there is no standard input" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"\n")))
    assert main(["predict", "classifier", "-"]) == 2
    assert "There are no images" in capsys.readouterr().err


def test_interrupted_by_ctrl_c_it_says_how_to_continue(desk, tmp_path):
    command = ["predict", "classifier", "images", "--out", str(tmp_path / "p.csv"), "--batch-size", "4"]
    process = Forked(tmp_path, work=stopping(journal, "write_from", 5, partial(main, command)))
    process.wait_for_stop()
    os.kill(process.pid, signal.SIGINT)
    process.go_on()
    code, out, err = process.wait()
    assert (code, out, err) == (130, "Interrupted. Run the same command to continue.\n", "")
    assert main(command) == 0
    assert not (tmp_path / "p.csv.part").exists()


def test_memory_does_not_grow_with_the_images(tmp_path):
    """From 100 to 20,000 images, whose features take 20 MB."""
    model = Model(name="custom", embed_dim=64, depth=1, num_heads=1, image_size=8, patch_size=4)
    in_all_forms(Recipe(model=model), tmp_path)
    for name, count in (("few", 100), ("many", 20_000)):
        (tmp_path / name).mkdir()
        Image.effect_noise((8, 8), 60).save(tmp_path / name / "0.bmp")
        for number in range(1, count):
            os.link(tmp_path / name / "0.bmp", tmp_path / name / f"{number}.bmp")
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", GROWTH]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    few, many = map(int, done.stdout.split("growth")[1].split())
    assert many - few < 12 << 20, (few, many)
    assert (tmp_path / "many.npz").stat().st_size > 20_000 * 4 * 64 * 4


@pytest.mark.parametrize(
    "command",
    [
        "predict classifier images --out",
        "embed run images --out",
        "export run --out",
        "report classifier --images 0 --out",
    ],
)
def test_ctrl_c_while_something_is_written_leaves_nothing_half_made(desk, tmp_path, command):
    """At each flush to the disk: exit 130 and no file of that name, or the whole one."""
    ends = {"embed": "f.npz", "report": "r.html"}
    out = tmp_path / "whole" / ends.get(command.split()[0], "f")
    out.parent.mkdir()
    assert main([*command.split(), str(out)]) == 0
    for number in range(1, 9):
        begun = tmp_path / str(number) / out.name
        begun.parent.mkdir()
        words = [*command.split(), str(begun)]
        process = Forked(tmp_path, work=interrupted(os, "fsync", number, partial(main, words)))
        code, said, complaint = process.wait()
        assert "Traceback" not in said + complaint
        if code == 0:
            break
        assert code == 130
        assert "nterrupted" in said + complaint
        assert not begun.exists() or files_of(begun).keys() == files_of(out).keys()
        assert main([*words, "--overwrite"][: None if "report" not in command else -1]) == 0
    assert number > 1


def interrupted(owner, name, number, work):
    """``work`` with a Ctrl-C before the ``number``-th call of ``owner.name``."""
    plain, numbers = getattr(owner, name), itertools.count(1)

    def counted(*given, **named):
        if next(numbers) == number:
            signal.raise_signal(signal.SIGINT)
        return plain(*given, **named)

    def begun():
        setattr(owner, name, counted)
        return work()

    return begun


def files_of(path):
    """The sizes of a file, or of all files in a folder."""
    found = [path] if path.is_file() else path.rglob("*")
    return {one.name: one.stat().st_size for one in found}
