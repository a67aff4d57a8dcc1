"""benchmarks/gpu.py goes through all of its parts on a CPU, at a tiny size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

GPU = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
BARS = ["≥ 4.00 ×", "≥ 5.00 ×", "≥ 10.00 ×", "≥ 50.0 %", "≥ 55.0 %", "≥ 1.20 ×", "≥ 1.10 ×", "≥ 20,000 images/s"]
BARS += ["shorter", "≥ 20.00 ×", "< 0.1 %"]


def run(*arguments):
    return subprocess.run([sys.executable, str(GPU), *arguments], capture_output=True, text=True, check=False)


@pytest.mark.timeout(900)
def test_every_part_gives_its_figures(tmp_path):
    for needed in ("transformers", "faiss"):
        pytest.importorskip(needed)
    out = tmp_path / "gpu"
    done = run("--dry-run", "--minutes", "14", "--out", str(out))
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "gpu.json").read_text())
    assert {name: part.get("failed") for name, part in report["parts"].items() if "failed" in part} == {}
    assert all(part["figures"] for name, part in report["parts"].items() if name != "pictures")
    table = (out / "gpu.md").read_text()
    assert [bar for bar in BARS if f"| {bar} |" not in table] == []
    assert "these figures mean nothing" in table
    again = run("--dry-run", "--parts", "large", "--minutes", "0", "--out", str(out))
    assert again.returncode == 0, again.stderr
    assert "no time was left: --parts large" in again.stdout
    assert json.loads((out / "gpu.json").read_text())["parts"] == report["parts"]


def test_mistakes_are_told(tmp_path):
    assert "there is no part bas" in run("--parts", "bas", "--out", str(tmp_path / "a")).stderr
    (tmp_path / "mine").touch()
    assert "is not empty" in run("--dry-run", "--out", str(tmp_path)).stderr
    assert os.listdir(tmp_path) == ["mine"]
