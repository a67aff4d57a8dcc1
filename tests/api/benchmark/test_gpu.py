"""benchmarks/gpu/gpu.py runs all of its parts on a CPU, at a tiny size; here in this process."""

import json
import os
import runpy
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mapet.api.benchmark import process, rates
from mapet.cli import main
from mapet.method.pattern import mapet

BENCHMARKS = Path(__file__).parents[3] / "benchmarks" / "gpu"
BARS = ["≥ 4.00 ×", "≥ 5.00 ×", "≥ 10.00 ×", "≥ 50.0 %", "≥ 55.0 %", "≥ 1.20 ×", "≥ 1.10 ×", "≥ 20,000 images/s"]
FIGURE = {"what": "a", "value": "1", "bar": "", "holds": None}
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
    monkeypatch.setattr(rates.measure, "__defaults__", (1e-3, None))
    for name in ("ROWS", "SQUARE"):
        monkeypatch.setattr(rates, name, {"cpu": 64})
    monkeypatch.setattr(rates, "PARAMETERS", {"cpu": 1 << 16})


def run(gpu, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
    gpu.main()


@pytest.mark.parametrize(("length", "masked"), [(16, 12), (9, 2), (9, 8)])
def test_windows_equal_the_mask(gpu, length, masked):
    """As the kernels of a GPU are called: one plain attention, two with a sliding window."""
    pattern = mapet(length, masked)
    rows = [torch.randn(2, 3, n, 8, requires_grad=True) for n in (pattern.rows, pattern.keys, pattern.keys)]
    found = sys.modules["gpu_inside"].by_windows(*rows, length)
    known = F.scaled_dot_product_attention(*rows, attn_mask=pattern.visible[:, : pattern.keys])
    torch.testing.assert_close(found, known)
    given = torch.randn_like(found)
    torch.testing.assert_close(torch.autograd.grad(found, rows, given), torch.autograd.grad(known, rows, given))


def test_every_part_gives_its_figures(gpu, here, monkeypatch, tmp_path, capsys):
    for needed in ("transformers", "faiss"):
        pytest.importorskip(needed)
    out = tmp_path / "gpu"
    run(gpu, monkeypatch, "--dry-run", "--minutes", "60", "--out", str(out))
    report = json.loads((out / "gpu.json").read_text())
    assert {name: part["failed"] for name, part in report["parts"].items() if "failed" in part} == {}
    assert [name for name, part in report["parts"].items() if not part["figures"]] == ["images"]
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
    assert found["slow"]["failed"] == "no end after 1 s (see slow.log)"
    assert "none" in found["empty"]["failed"]


ROW = {"implementation": "ours", "batch": 4, "passes_seconds": 1.0, "seconds": 1.0, "loading": 1.0, "memory": 10}
ROW |= {"peak": [1e12], "share": 0.6, "passes_share": 0.7, "images_per_second": 4.0}
DENSE = ROW | {"implementation": "dense", "passes_seconds": 5.0, "seconds": 5.0, "loading": 9.0, "memory": 40}
LOST = {"mapet, custom, batch 4": "CUDA out of memory."}


def left(folder, *rows, failed=None):
    """What a ``mapet bench`` that was stopped at some moment leaves."""
    folder.mkdir(exist_ok=True)
    (folder / "bench.json").write_text(json.dumps({"rows": rows, "failed": failed or {}}))
    return folder


def test_figures_of_whatever_rows_there_are(gpu, tmp_path):
    import gpu_parts

    def titles(read, *rows, **more):
        return [figure.what for figure in read(left(tmp_path / "base", *rows, **more), None)]

    dense = gpu_parts.against_dense("B", 5, 4)
    assert dense(tmp_path / "absent", None) == []
    assert titles(dense, ROW) == titles(dense, DENSE) == titles(dense) == []
    assert len(titles(dense, ROW, DENSE)) == 4
    assert len(titles(dense, ROW, {**DENSE, "loading": None}, failed=LOST)) == 3
    left(tmp_path / "base-compiled", failed=LOST)
    assert len(titles(dense, ROW, DENSE)) == 4
    left(tmp_path / "base-compiled", ROW, failed=LOST)
    assert len(titles(dense, ROW, DENSE)) == 7
    assert len(titles(dense, DENSE)) == 3, "ours, compiled"
    assert titles(gpu_parts.over_peer("MIM", 1.2), ROW) == titles(gpu_parts.share_of_peak("L", 0.55)) == []
    assert len(titles(gpu_parts.over_peer("MIM", 1.2), ROW, {**ROW, "implementation": "transformers"})) == 2
    small = gpu_parts.small_images
    assert "batch 4," in titles(small, {**ROW, "batch": 8, "loading": None}, ROW, failed=LOST)[0]
    assert titles(small, {**ROW, "loading": None}) == titles(small) == []


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        ("sys.exit(2)", "mapet, custom, batch 4: CUDA out of memory."),
        ("time.sleep(600)", "no end after 2 s; mapet, custom, batch 4: CUDA out of memory."),
    ],
)
def test_rows_of_a_part_that_failed_or_was_stopped_count(gpu, monkeypatch, tmp_path, ending, said):
    from gpu_parts import Part, pace

    left(tmp_path / "ready", ROW, failed=LOST)
    copied = f"shutil.copytree({str(tmp_path / 'ready')!r}, sys.argv[1], dirs_exist_ok=True)"
    code = f"import shutil, sys, time; {copied}; {ending}"
    part = Part("", lambda context: [sys.executable, "-c", code, str(context.out / "part")], pace("ours"), 60)
    monkeypatch.setattr(gpu, "PARTS", {"part": part})
    found = gpu.measured("part", gpu.Context(tmp_path, True), 2)
    assert [figure["value"] for figure in found["figures"]] == ["4 images/s"]
    assert found["failed"] == f"{said} (see part.log)"


def test_steps_with_a_bar_come_first(gpu):
    order = list(gpu.PARTS)
    steps = ["mim", "mae", "large", "base-compiled", "base", "tiny-compiled", "tiny", "small"]
    assert [name for name in order if name != "images"][: len(steps)] == steps
    assert order.index("images") < order.index("base-compiled")
    assert order[-3:] == ["kmeans", "assignments", "attention"]


def test_earlier_figures_outlive_a_call_that_has_fewer(gpu, monkeypatch, tmp_path):
    parts = [{"about": "", "figures": [FIGURE] * count, **more} for count, more in
             ((2, {}), (1, {"failed": "x"}), (2, {"failed": "y"}), (1, {}))]  # fmt: skip
    kept = []
    for part in parts:
        monkeypatch.setattr(gpu, "measured", lambda name, context, seconds, part=part: part)
        run(gpu, monkeypatch, "--dry-run", "--parts", "mim", "--out", str(tmp_path / "gpu"))
        kept.append(json.loads((tmp_path / "gpu" / "gpu.json").read_text())["parts"]["mim"])
    assert kept == [parts[0], parts[0], parts[2], parts[3]]


def test_without_images_steps_are_measured_without_loading(gpu, tmp_path):
    context = gpu.Context(tmp_path, True)
    assert "--data" not in gpu.PARTS["base"].command(context)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "complete").touch()
    assert "--data" in gpu.PARTS["base"].command(context)


def test_mistakes_are_told(gpu, monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(gpu, monkeypatch, "--parts", "bas", "--out", str(tmp_path / "a"))
    assert "there is no part bas" in capsys.readouterr().err
    (tmp_path / "mine").touch()
    with pytest.raises(SystemExit, match="is not empty"):
        run(gpu, monkeypatch, "--dry-run", "--out", str(tmp_path))
    assert os.listdir(tmp_path) == ["mine"]
