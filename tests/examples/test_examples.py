"""The examples of CONTRIBUTING run as scripts, and what they write is used."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from mapet.cli import main

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = [
    "--model",
    "custom",
    "--embed-dim",
    "16",
    "--depth",
    "2",
    "--num-heads",
    "2",
    "--batch-size",
    "8",
    "--epochs",
    "1",
]
TINY += ["--warmup-epochs", "0", "--accelerator", "cpu", "--image-size", "32", "--patch-size", "8"]


def run(name, *words):
    """A process of its own; ``here`` runs a script in this one."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def here(monkeypatch, capsys):
    def script(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return script


def test_a_data_set_is_packed_and_trained_on(tmp_path):
    run("own_dataset.py", tmp_path / "packed")
    words = [str(tmp_path / "packed"), "--out", str(tmp_path / "run"), "--objective", "mae"]
    assert main(["pretrain", *words, *TINY]) == 0
    assert main(["pack", str(tmp_path / "packed"), "--out", str(tmp_path / "again"), "--size", "32"]) == 0


def test_a_tokenizer_s_tokens_are_trained_on(images, tmp_path, here):
    here("own_tokenizer.py", images, tmp_path / "tokens")
    words = [str(images), "--tokens", str(tmp_path / "tokens"), "--out", str(tmp_path / "run")]
    assert main(["pretrain", *words, *TINY]) == 0


def test_an_evaluation_reads_features(images, tmp_path, here):
    words = [str(images), "--out", str(tmp_path / "run"), "--objective", "mae"]
    assert main(["pretrain", *words, *TINY]) == 0
    accuracy = here("own_evaluation.py", tmp_path / "run", images)
    assert float(accuracy.split()[3].rstrip("%")) == pytest.approx(50, abs=50)
