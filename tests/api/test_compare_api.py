"""``mapet.compare`` from Python: the same as the command, and refusals in Python's words."""

import csv
from pathlib import Path

import pytest

import mapet
from mapet.api.compare.plan import Plan
from mapet.api.compare.run import _require_apart, compare, resume
from mapet.cli import main
from mapet.config.compare import CompareSettings
from mapet.config.file import read
from mapet.config.recipe import Recipe, Runtime
from mapet.utils.errors import MapetError

SHAPE = {"embed_dim": 16, "depth": 3, "num_heads": 2, "image_size": 16, "patch_size": 4}
SMALL = {**SHAPE, "batch_size": 16, "epochs": 1, "warmup_epochs": 0.5, "lr": 1e-3, "teacher": "pixels", "iterations": 2}


@pytest.fixture(scope="module")
def compared(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("python") / "out"
    return compare(
        Recipe(),
        out,
        objectives=["mim", "mae"],
        baselines="random",
        seeds=2,
        evaluate="knn,fewshot",
        data=images,
        model="custom",
        vocab_size=16,
        accelerator="cpu",
        **SMALL,
    )


def test_python_and_the_command_line_give_equal_results(images, compared, tmp_path, capsys):
    options = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    lists = ["--objectives", "mim,mae", "--baselines", "random", "--seeds", "2", "--evaluate", "knn,fewshot"]
    more = ["--model", "custom", "--vocab-size", "16", "--accelerator", "cpu"]
    assert main(["compare", "--data", str(images), "--out", str(tmp_path / "out"), *lists, *options, *more]) == 0
    assert (tmp_path / "out" / "results.csv").read_bytes() == (compared.folder / "results.csv").read_bytes()
    shown = capsys.readouterr().out
    for line in str(compared).splitlines():
        if "best by the mean" in line:
            assert line in shown


def test_the_result_has_rows_and_tables(compared):
    written = list(csv.DictReader((compared.folder / "results.csv").open()))
    assert [{name: str(value) for name, value in row.items()} for row in compared.rows] == written
    assert [entry.name for entry in compared.tables["epochs"]] == ["mim", "mae", "random"]
    text = str(compared)
    assert text.startswith("Equal epochs\n\n")
    assert "k-NN: best by the mean: " in text


def test_resume_gives_the_same_without_work(compared, monkeypatch):
    from mapet.api.compare import trials

    monkeypatch.setattr(trials, "_train", None)
    assert str(resume(str(compared.folder), accelerator="cpu")) == str(compared)
    assert str(mapet.resume(compared.folder, accelerator="cpu")) == str(compared)


def test_lists_are_names_or_one_string():
    assert CompareSettings(objectives="mim, mae").objectives == ("mim", "mae")
    assert CompareSettings(evaluate=["knn"], vary="lr=1,2") == CompareSettings(evaluate=("knn",), vary=("lr=1,2",))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": None}, "data"),
        ({"objectiv": "mim"}, 'There is no setting "objectiv"'),
        ({"objective": "mim"}, "use objectives"),
        (
            {"decoder_depth": 2},
            "decoder_depth only applies to cae and mae; in a comparison use vary decoder-depth",
        ),
        ({"seeds": 0}, "seeds must be >= 1, got 0"),
        ({"runtime": Runtime(devices=2)}, "one device"),
        ({"tokens": "t", "vocab_size": 9}, "vocab_size"),
    ],
)
def test_refusals_name_python_s_settings(images, tmp_path, changes, said):
    with pytest.raises(MapetError) as error:
        compare(None, tmp_path / "out", **{"data": str(images), **changes})
    assert said in str(error.value)
    assert "--" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_output_folder_of_an_input_is_refused(images, tmp_path):
    for out, inputs in ((images, {}), (tmp_path, {"tokenizers": [tmp_path]}), (images / "new", {})):
        with pytest.raises(MapetError, match="give another out"):
            compare(None, out, data=str(images), **inputs)


def test_a_comparison_of_version_0_1_is_read():
    plan = read(Path(__file__).parents[2] / "results" / "cifar10" / "compare.yaml", Plan)
    assert (plan.seeds, plan.eval_limit, plan.recipe.tokenizer.vocab_size) == (3, 10_000, 512)


def test_files_that_are_read_do_not_lie_in_the_output(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.yaml").write_text("epochs: 1\n")
    for name, file in {"RECIPE": str(tmp_path / "out" / "mine.yaml"), "tuning": tmp_path / "out" / "mine.yaml"}.items():
        with pytest.raises(MapetError, match=f"{name} .*mine.yaml lies in "):
            _require_apart(tmp_path / "out", Recipe(), CompareSettings(), **{name: file})
    _require_apart(tmp_path / "out", Recipe(), CompareSettings(), RECIPE=Recipe(), tuning=None)
