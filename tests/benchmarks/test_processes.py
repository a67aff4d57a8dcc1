"""What benchmarks/processes.py compares is one training, at a tiny size. Nothing is timed."""

import importlib.util
import json
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest


@pytest.fixture
def benchmark(monkeypatch):
    spec = importlib.util.spec_from_file_location(
        "benchmark_processes", Path(__file__).parents[2] / "benchmarks" / "processes.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(module.SIZES, "vit_tiny", {"embed_dim": 8, "depth": 1, "num_heads": 2})
    monkeypatch.setattr(module, "VOCABULARY", 7)
    tiny = ["--image-size=8", "--patch-size=4", "--batch=4", "--processes", "1", "2", "--steps=2", "--rounds=1"]
    monkeypatch.setattr(sys, "argv", ["processes.py", *tiny, "--device=cpu", "--threads=2"])
    return module


def test_command_line(benchmark, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", [*sys.argv, f"--json={tmp_path / 'processes.json'}"])
    benchmark.main()
    said = capsys.readouterr().out
    assert "| 1 |  | 2 |" in said
    assert "| 2 | ddp | 1 |" in said
    assert "| 2 | fsdp | 1 |" in said
    report = json.loads((tmp_path / "processes.json").read_text())
    assert [len(result["steps"]) for result in report["results"]] == [2, 2, 2]


def test_other_losses_are_no_comparison(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "launch", lambda _, way: ([(1.0, 1.0)], [float(way.processes)]))
    with pytest.raises(SystemExit, match="2 processes under ddp disagree"):
        benchmark.main()


def test_no_script_stands_in_a_packages_way():
    """A script's folder comes first in Python's path, so tokenizers.py there would be imported as that package."""
    scripts = {path.stem for path in (Path(__file__).parents[2] / "benchmarks").rglob("*.py")}
    assert not scripts & (set(packages_distributions()) | set(sys.stdlib_module_names))
