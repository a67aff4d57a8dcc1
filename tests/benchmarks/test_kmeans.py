"""What benchmarks/kmeans.py compares is equal, at a tiny size. Nothing is timed."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from mapet.tokenizers.kmeans_init import sampled


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location(
        "benchmark_kmeans", Path(__file__).parents[2] / "benchmarks" / "kmeans.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_start_from_the_same_objective(benchmark):
    vectors = benchmark.features(600, 8)
    start = sampled(vectors, 12, seed=1)
    assert benchmark.ours(vectors, start, 1, "float32") == pytest.approx(benchmark.theirs(vectors, start, 1), rel=1e-5)


def test_command_line(benchmark, monkeypatch, tmp_path, capsys):
    options = ["--vectors=500", "--width=6", "--codes=9", "--iterations=2", "--rounds=2"]
    monkeypatch.setattr(sys, "argv", ["kmeans.py", *options, f"--json={tmp_path / 'kmeans.json'}"])
    benchmark.main()
    assert "faiss / ours" in capsys.readouterr().out
    report = json.loads((tmp_path / "kmeans.json").read_text())
    assert len(report["rounds"]["ours"]) == len(report["rounds"]["faiss"]) == 2
    rounds = {name: [benchmark.Round(wall, 1, 1, 1)] for name, wall in (("ours", 2.0), ("faiss", 3.0))}
    assert benchmark.medians(rounds, 20 / 1)["faiss / ours"] == 30
    monkeypatch.setattr(benchmark, "theirs", lambda *_: 1.0)
    with pytest.raises(SystemExit, match="disagree"):
        benchmark.main()
