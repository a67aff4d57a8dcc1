"""benchmarks/gpu/gpu.py goes through all of its parts on a CPU, at a tiny size; here without a new Python for each."""

import json
import os
import runpy
import sys
import time
from pathlib import Path

import pytest

from mapet.bench import process, rates
from mapet.cli import main

BENCHMARKS = Path(__file__).parents[2] / "benchmarks" / "gpu"
BARS = ["≥ 4.00 ×", "≥ 5.00 ×", "≥ 10.00 ×", "≥ 50.0 %", "≥ 55.0 %", "≥ 1.20 ×", "≥ 1.10 ×", "≥ 20,000 images/s"]
BARS += ["shorter", "≥ 20.00 ×", "< 0.1 %", "≤ 35 %", "stated"]


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    yield gpu
    for name in ("gpu", "gpu_parts", "gpu_inside"):
        sys.modules.pop(name, None)


@pytest.fixture
def here(gpu, monkeypatch):
    """Every part's command done by this process; ``mapet`` by its own function."""

    def ended(command, log, environment, seconds):
        if "-m" in command[:2]:
            return main(command[3:])
        with monkeypatch.context() as patched:
            patched.setattr(sys, "argv", command[1:])
            if "--inside" in command:
                gpu.main()
            else:
                runpy.run_path(command[1], run_name="__main__")
        return 0

    monkeypatch.setattr(gpu, "ended", ended)
    monkeypatch.setattr(process, "until_first_step", lambda case, accelerator: time.monotonic())
    monkeypatch.setattr(rates.measure, "__defaults__", (1e-3,))
    for name in ("ROWS", "SQUARE"):
        monkeypatch.setattr(rates, name, {"cpu": 64})
    monkeypatch.setattr(rates, "PARAMETERS", {"cpu": 1 << 16})


def run(gpu, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
    gpu.main()


def test_every_part_gives_its_figures(gpu, here, monkeypatch, tmp_path, capsys):
    for needed in ("transformers", "faiss"):
        pytest.importorskip(needed)
    out = tmp_path / "gpu"
    run(gpu, monkeypatch, "--dry-run", "--minutes", "60", "--out", str(out))
    report = json.loads((out / "gpu.json").read_text())
    assert {name: part["failed"] for name, part in report["parts"].items() if "failed" in part} == {}
    assert [name for name, part in report["parts"].items() if not part["figures"]] == ["pictures"]
    table = (out / "gpu.md").read_text()
    absent = [bar for bar in BARS if f"| {bar} |" not in table]
    assert absent == ["≤ 35 %"]  # peak memory is measured on a GPU alone
    assert "these figures mean nothing" in table
    run(gpu, monkeypatch, "--dry-run", "--parts", "large", "--minutes", "0", "--out", str(out))
    assert "no time was left: --parts large" in capsys.readouterr().out
    assert json.loads((out / "gpu.json").read_text())["parts"] == report["parts"]


def test_a_part_that_fails_or_hangs_leaves_the_others(gpu, monkeypatch, tmp_path):
    from gpu_parts import Figure, Part

    def python(code):
        return lambda context: [sys.executable, "-c", code]

    sleeping = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    parts = {
        "good": Part("", python(""), lambda folder, context: [Figure("seen", "1 s")], 60),
        "bad": Part("", python("raise SystemExit('no such kernel')"), lambda folder, context: [], 60),
        "slow": Part("", python(sleeping), lambda folder, context: [], 1),
        "empty": Part("", python(""), lambda folder, context: [Figure((folder / "none").read_text(), "")], 60),
    }
    monkeypatch.setattr(gpu, "PARTS", parts)
    context = gpu.Context(tmp_path, True)
    found = {name: gpu.measured(name, context, part.seconds) for name, part in parts.items()}
    assert found["good"]["figures"][0]["what"] == "seen"
    assert "ended with 1: no such kernel" in found["bad"]["failed"]
    assert found["slow"]["failed"] == "no end after 1 s"
    assert "none" in found["empty"]["failed"]


def test_mistakes_are_told(gpu, monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(gpu, monkeypatch, "--parts", "bas", "--out", str(tmp_path / "a"))
    assert "there is no part bas" in capsys.readouterr().err
    (tmp_path / "mine").touch()
    with pytest.raises(SystemExit, match="is not empty"):
        run(gpu, monkeypatch, "--dry-run", "--out", str(tmp_path))
    assert os.listdir(tmp_path) == ["mine"]
