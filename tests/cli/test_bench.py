"""``mapet bench`` and the hours of ``mapet show``, at a tiny size."""

import json
from pathlib import Path
from statistics import median

import pytest
import torch

from mapet.api.benchmark import measure, rates
from mapet.api.benchmark.rates import Rates
from mapet.api.benchmark.report import read_rates, reason
from mapet.api.benchmark.run import benchmark
from mapet.build.pretrain import build_objective
from mapet.cli import main
from mapet.config.recipe import Model, Recipe
from mapet.utils.errors import MapetError

TINY = ["--model", "custom", "--embed-dim", "16", "--depth", "1", "--num-heads", "2", "--image-size", "16"]
TINY += ["--patch-size", "4", "--accelerator", "cpu", "--vocab-size", "11", "--rounds", "2", "--batch-sizes", "4"]
UNIT = Rates("cpu", "float32", 192, *([1e9] * 7))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Measure the machine in no time; memory takes separate processes (tests/api/benchmark/test_process.py)."""
    monkeypatch.setattr(measure.process, "memory", lambda case, implementation, accelerator: 1 << 20)
    for name in ("ROWS", "SQUARE"):
        monkeypatch.setattr(rates, name, {"cpu": 32})
    monkeypatch.setattr(rates, "PARAMETERS", {"cpu": 1 << 16})
    monkeypatch.setattr(rates.measure, "__defaults__", (1e-3, None))
    monkeypatch.setattr("mapet.api.benchmark.step.ROUND", {"cpu": 0.0})


def bench(*more, out, code=0):
    assert main(["bench", *TINY, *more, "--out", str(out)]) == code
    return json.loads((out / "bench.json").read_text())


def test_rows_of_every_case_with_loading_and_memory(images, tmp_path, capsys):
    out = tmp_path / "bench"
    found = bench("--baseline", "dense", "--data", str(images), out=out)
    screen = capsys.readouterr().out
    assert max(map(len, screen.splitlines()[1:-1])) <= 80
    assert [(row["objective"], row["implementation"]) for row in found["rows"]] == [
        ("mapet", "ours"),
        ("mapet", "dense"),
    ]
    for row in found["rows"]:
        assert len(row["step"]) == len(row["passes"]) == 2
        assert row["seconds"] > row["passes_seconds"] > 0
        assert row["memory"] == 1 << 20
        assert row["loading"] > 0
        assert row["images_per_second"] == pytest.approx(4 / row["seconds"])
    ours = found["rows"][0]
    assert ours["flops"] == pytest.approx(ours["flop"] * 4 / ours["seconds"])
    shares = [ours["flop"] * 4 / (seconds * peak) for seconds, peak in zip(ours["step"], ours["peak"], strict=True)]
    assert ours["share"] == pytest.approx(median(shares))
    assert ours["predicted"] == pytest.approx(sum(ours["parts"].values()))
    table = (out / "bench.md").read_text()
    assert found["machine"] in table
    assert found["command"] in table
    assert table.count("| mapet | custom | 4 | float32 | no |") == 2
    assert main(["bench", *TINY, "--out", str(out)]) == 2
    assert "already has a bench.json" in capsys.readouterr().err


def test_a_case_that_fails_leaves_the_others(tmp_path, capsys, monkeypatch):
    real = measure.require_equal

    def failing(every, case, fabric):
        if case.batch == 2:
            raise RuntimeError("no kernel")
        real(every, case, fabric)

    monkeypatch.setattr(measure, "require_equal", failing)
    found = bench("--batch-sizes", "2,4", out=tmp_path / "bench", code=2)
    assert [row["batch"] for row in found["rows"]] == [4]
    assert list(found["failed"].values()) == ["RuntimeError: no kernel"]
    assert "failed    RuntimeError: no kernel" in capsys.readouterr().out


@pytest.mark.parametrize("fails", [range(1, 100), range(1, 2), range(3, 4)], ids=["always", "first", "between"])
def test_products_that_fail_leave_the_steps(tmp_path, capsys, monkeypatch, fails):
    """First the machine is measured, then each of the two rounds."""
    real, calls = rates.measure, []

    def failing(*given, **named):
        calls.append(given)
        if len(calls) in fails:
            raise RuntimeError("no such product")
        return real(*given, **named)

    monkeypatch.setattr(rates, "measure", failing)
    found = bench(out=tmp_path / "bench", code=2)
    assert len(calls) == 3
    assert set(found["failed"].values()) == {"RuntimeError: no such product"}
    (row,) = found["rows"]
    assert row["images_per_second"] > 0
    assert (row["share"] is None) == (3 in fails)
    assert (row["predicted"] is None) == (2 in fails)
    assert len(found["rates"]) == (1 not in fails)
    assert "no such product" in capsys.readouterr().out
    assert "| mapet | custom | 4 |" in (tmp_path / "bench" / "bench.md").read_text()


LOST = "DataLoader worker (pid 1) is killed by signal: Bus error."


def test_a_measurement_that_fails_leaves_what_was_timed(images, tmp_path, capsys, monkeypatch):
    real = measure.end_to_end

    def failing(runner, *how):
        if runner.name == "dense":
            raise RuntimeError(LOST)
        return real(runner, *how)

    def killed(case, implementation, accelerator):
        raise MapetError("its process ended with -9")

    monkeypatch.setattr(measure, "end_to_end", failing)
    monkeypatch.setattr(measure.process, "memory", killed)
    out = tmp_path / "bench"
    found = bench("--baseline", "dense", "--data", str(images), "--batch-sizes", "2,4", out=out, code=2)
    assert [(row["batch"], row["implementation"]) for row in found["rows"]] == [
        (batch, name) for batch in (2, 4) for name in ("ours", "dense")
    ]
    assert [row["loading"] is None for row in found["rows"]] == [False, True] * 2
    assert all(row["memory"] is None and row["seconds"] > 0 for row in found["rows"])
    case = "mapet, custom, batch 4, float32"
    assert found["failed"][f"{case}, dense with loading"] == f"RuntimeError: {LOST}"
    assert found["failed"][f"{case}, memory of ours"] == "its process ended with -9"
    assert len(found["failed"]) == 6
    assert f"failed    dense with loading: RuntimeError: {LOST[:30]}" in capsys.readouterr().out
    assert f"{case}, dense with loading: RuntimeError: {LOST}" in (out / "bench.md").read_text()


def test_an_implementation_that_cannot_run_leaves_the_others(tmp_path, monkeypatch):
    real = measure.Runner

    def failing(one, case, fabric):
        if one.name == "dense":
            raise AssertionError
        return real(one, case, fabric)

    monkeypatch.setattr(measure, "Runner", failing)
    found = bench("--baseline", "dense", out=tmp_path / "bench", code=2)
    assert [row["implementation"] for row in found["rows"]] == ["ours"]
    assert found["failed"] == {"mapet, custom, batch 4, float32, dense": "AssertionError"}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MapetError("no images"), "no images"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTry less."), "CUDA out of memory."),
        (RuntimeError("backend='inductor' raised:\nOSError: no compiler\n\nSet X=1"),
         "RuntimeError: backend='inductor' raised: OSError: no compiler"),
        (ValueError("Caught in worker 0.\nOriginal Traceback (most recent call last):\n  x\nValueError: bad\n"),
         "ValueError: Caught in worker 0. ValueError: bad"),
        (KeyError(), "KeyError"),
    ],
)  # fmt: skip
def test_a_reason_is_one_line(error, said):
    assert reason(error) == said


def test_an_interruption_while_loading_keeps_what_was_timed(images, tmp_path, monkeypatch):
    def interrupted(*how):
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "end_to_end", interrupted)
    found = bench("--baseline", "dense", "--data", str(images), out=tmp_path / "bench", code=130)
    assert [(row["implementation"], row["loading"]) for row in found["rows"]] == [("ours", None), ("dense", None)]


def test_an_interruption_keeps_the_rows(tmp_path, monkeypatch):
    real = measure.alternate

    def interrupted(runners, *how):
        if runners[0].batch["images"].shape[0] == 4:
            raise KeyboardInterrupt
        return real(runners, *how)

    monkeypatch.setattr(measure, "alternate", interrupted)
    found = bench("--batch-sizes", "2,4", "--micro-batch-size", "1", out=tmp_path / "bench", code=130)
    assert [(row["batch"], row["accumulate"]) for row in found["rows"]] == [(2, 2)]


def test_processes_share_the_batch(tmp_path):
    found = bench("--scaling", "2", out=tmp_path / "bench")
    assert [(row["implementation"], row["devices"]) for row in found["rows"][1:]] == [("scaling", 2)]
    assert "| 2 processes |" in (tmp_path / "bench" / "bench.md").read_text()


def test_from_python(tmp_path):
    sizes = {"embed_dim": 16, "depth": 1, "num_heads": 2, "image_size": 16, "patch_size": 4, "vocab_size": 11}
    settings = {"model": "custom", "accelerator": "cpu", "rounds": 2, "batch_sizes": [2, 4], **sizes}
    report = benchmark(None, tmp_path / "bench", **settings)
    assert [(row.batch, row.implementation) for row in report.rows] == [(2, "ours"), (4, "ours")]
    assert report.failed == {}
    assert read_rates(report.folder / "bench.json") == report.rates
    with pytest.raises(MapetError, match="batch_size does not apply to a benchmark; use batch_sizes"):
        benchmark(None, tmp_path / "other", batch_size=4)


def test_a_recipe_after_a_list(tmp_path):
    found = bench("--objectives", "mim,mae", "cifar10-vit-tiny", out=tmp_path / "bench")
    assert [row["objective"] for row in found["rows"]] == ["mim", "mae"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--baseline", "dens"], 'Did you mean "dense"?'),
        (["--objectives", "mapte"], 'Did you mean "mapet"?'),
        (["--batch-sizes", "four"], "--batch-sizes"),
        (["--scaling", "3"], "must divide the batch of 4"),
        (["--compile", "maybe"], "--compile"),
        (["--batch-size", "2"], "use --batch-sizes"),
        (["--precision", "bfloat16"], "use --precisions"),
        (["--micro-batch-size", "0"], "--micro-batch-size must be >= 1, got 0"),
        (["--rounds", "0"], "--rounds"),
        (["--data", "absent"], "absent"),
        (["cifar10-vit-tiny", "another"], 'Unexpected "another"'),
    ],
)
def test_mistakes_are_refused_before_anything_is_measured(arguments, said, tmp_path, capsys):
    assert main(["bench", *TINY, *arguments, "--out", str(tmp_path / "bench")]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert said in told.err
    assert not (tmp_path / "bench").exists()


def test_a_pack_of_another_size_is_refused_before_anything_is_measured(images, tmp_path, capsys):
    pack = tmp_path / "pack"
    assert main(["pack", str(images), "--out", str(pack), "--size", "32", "--workers", "0"]) == 0
    capsys.readouterr()
    assert main(["bench", *TINY, "--data", str(pack), "--out", str(tmp_path / "bench")]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert "32" in told.err
    assert not (tmp_path / "bench").exists()


ONE_BLOCK = Model(name="custom", embed_dim=192, depth=1, num_heads=3)
SHOW = ["show", "--model", "custom", "--embed-dim", "192", "--depth", "1", "--num-heads", "3", "--batch-size", "50"]


def shown(capsys, *arguments):
    assert main([*SHOW, "--epochs", "2", *arguments]) == 0
    return capsys.readouterr().out


def test_show_predicts_hours(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a path is not broken, so a long one makes a long line
    path = Path("bench.json")
    path.write_text(json.dumps({"rates": [vars(UNIT)]}))
    assert "give --bench" in shown(capsys)

    def hours(*arguments):
        text = shown(capsys, "--images", "1000", *arguments)
        assert max(map(len, text.splitlines())) <= 80
        return float(text.split("hours")[1].split()[0])

    one = hours("--bench", str(path))
    assert hours("--bench", str(path), "--devices", "5") < one / 4
    flop = 2 * build_objective(Recipe(model=ONE_BLOCK), 8192).macs(training=True) * 2000
    assert hours("--tflops", "0.001", "--devices", "2") == pytest.approx(flop / 2e9 / 3600, rel=0.01)
    assert hours("--measure") > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tflops", "1"], "--images"),
        (["--tflops", "1", "--measure"], "give one of them"),
        (["--bench", "absent.json"], "absent.json"),
        (["--devices", "0"], "--devices"),
        (["--tflops", "1", "--images", "5"], "fewer than one batch"),
    ],
)
def test_hours_that_are_unknown(arguments, said, capsys):
    assert main([*SHOW, *(["--images", "99"] if "absent.json" in arguments else []), *arguments]) == 2
    assert said in capsys.readouterr().err
