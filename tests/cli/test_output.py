"""``--quiet`` says nothing but refusals, and ``--json`` ends with the result, for every kind of verb."""

import json
import shutil
import sys
from io import StringIO

import pytest

import mapet
from mapet.cli import main, printing
from mapet.cli.output import plain
from mapet.utils.errors import MapetError
from mapet.utils.log import log

TINY = [
    "--model", "custom", "--embed-dim", "16", "--depth", "2", "--num-heads", "2", "--image-size", "16",
    "--patch-size", "4", "--epochs", "1", "--batch-size", "16", "--warmup-epochs", "0", "--accelerator", "cpu",
]  # fmt: skip
TOKENS = ["--teacher", "pixels", "--vocab-size", "8", "--iterations", "2", "--restarts", "1"]


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "run"
    assert main(["pretrain", str(images), "--out", str(folder), "--quiet", *TINY, *TOKENS]) == 0
    return folder


def test_a_quiet_training_says_nothing(images, tmp_path, capfd):
    words = ["pretrain", str(images), "--out", str(tmp_path / "run"), "--objective", "mae", *TINY]
    assert main(["--quiet", *words]) == 0
    assert capfd.readouterr() == ("", "")
    assert main([*words, "--quiet"]) == 2
    out, err = capfd.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)


def test_the_result_of_a_training(images, tmp_path, capsys):
    words = ["pretrain", str(images), "--out", str(tmp_path / "run"), "--objective", "mae", "--json", *TINY]
    assert main(words) == 0
    *text, last = capsys.readouterr().out.splitlines()
    assert any(line.startswith("done") for line in text)
    found = json.loads(last)
    assert found == {"exit_code": 0, "result": {"run": str(tmp_path / "run"), "step": 3, "scores": []}}


def verbs(run, images, tmp_path):
    return {
        "list objectives": lambda r: r["mapet"],
        f"check {run}": lambda r: not any(r.values()),
        "doctor": lambda r: "versions" in [one["topic"] for one in r],
        f"knn {run} --data {images}": lambda r: 0 <= r["knn"]["top1"]["value"] <= 1,
        f"embed {run} {images} --out {tmp_path / 'f.npz'}": lambda r: r == {"path": str(tmp_path / "f.npz"),
                                                                            "count": 48},
        f"pack {images} --out {tmp_path / 'packed'} --size 16": lambda r: r == str(tmp_path / "packed"),
        f"export {run} --out {tmp_path / 'export'}": lambda r: r == str(tmp_path / "export"),
        f"tokenizer inspect {run / 'tokens' / 'tokenizer'} {images} --out {tmp_path / 'i'} --num-codes 1":
            lambda r: r["verdict"],
        f"report {run} --out {tmp_path / 'r.html'} --images 0": lambda r: r == str(tmp_path / "r.html"),
    }  # fmt: skip


@pytest.mark.parametrize("number", range(9))
def test_the_result_of_other_verbs(run, images, tmp_path, capsys, number):
    words, holds = list(verbs(run, images, tmp_path).items())[number]
    assert main(["--json", "--quiet", *words.split()]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1, out
    assert holds(json.loads(out)["result"])
    assert not err


def test_a_finished_run_without_metrics_says_only_its_step(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "metrics.csv").write_bytes(b"")
    assert main(["pretrain", "--resume", str(copy)]) == 0
    said = capsys.readouterr().out
    assert "metrics.csv lacks the steps" in said
    assert "no step had a readable image" not in said


def test_a_file_as_out_of_a_benchmark_is_named(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(MapetError, match="out is a file: give another out"):
        mapet.benchmark(out=tmp_path / "out", objectives="mim", accelerator="cpu")


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("terminal", [True, False])
def test_long_lines_break_between_words_on_a_terminal_only(monkeypatch, columns, terminal):
    class Screen(StringIO):
        def isatty(self):
            return terminal

    screen, words = Screen(), [f"word{i}" for i in range(30)]
    long, path = f"memory    {' '.join(words)}", f"report    {'/folder' * 20}"
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "stdout", screen)
    with printing():
        log.info(f"short\n\n{long}")
        log.info(path)
    said = screen.getvalue()
    assert said.split() == ["short", *long.split(), *path.split()]
    assert said.startswith("short\n\nmemory    word0 ")
    if not terminal:
        assert said == f"short\n\n{long}\n{path}\n"
    else:
        lines = said.splitlines()
        assert all(len(line) <= columns for line in lines if "/" not in line)
        assert sum(line.startswith(" " * 10 + "word") for line in lines) >= (columns < 200)


def test_keys_of_several_words_are_text():
    assert plain({("fog", 3): 1, "clean": 2}) == {"fog 3": 1, "clean": 2}


def test_a_verb_after_another_has_no_result_of_it(capsys):
    main(["--json", "--quiet", "list", "models"])
    assert main(["--json", "--version"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"exit_code": 0, "result": None}
