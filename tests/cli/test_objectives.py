"""Every objective through the command line: without tokens where none are read, exact when interrupted, counted."""

import csv
import json

import pytest
import torch

from mapet.build.pretrain import build_objective
from mapet.cli import main
from mapet.config.recipe import OBJECTIVES, Model, Objective, Recipe
from mapet.engine import fit
from mapet.engine.run import Run, load_checkpoint

STUDENT = ["--image-size", "16", "--patch-size", "4"]
MODEL = ["--model", "custom", "--embed-dim", "16", "--depth", "3", "--num-heads", "2", "--drop-path", "0.2", *STUDENT]
SMALL = [*MODEL, "--batch-size", "8", "--epochs", "2", "--warmup-epochs", "1", "--lr", "1e-3"]


@pytest.fixture(scope="module")
def tokens(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenized") / "tokens"
    options = ["--teacher", "pixels", "--vocab-size", "16", "--iterations", "2"]
    assert main(["tokenize", str(images), "--out", str(folder), *STUDENT, *options]) == 0
    return folder


def arguments(images, out, objective, *more):
    return ["pretrain", "--data", str(images), "--out", str(out), "--objective", objective, *SMALL, *more]


def rows(folder):
    path = Run(folder).metrics
    return list(csv.DictReader(path.open())) if path.is_file() else []


def weights(folder):
    return load_checkpoint(Run(folder).last)[1]


def assert_equal(one, other):
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert Run(one).metrics.read_bytes() == Run(other).metrics.read_bytes()


def test_pixels_need_no_tokens(images, tokens, tmp_path, capsys):
    """MAE makes none and, given some, leaves them alone: the same run bit for bit."""
    alone, given = tmp_path / "alone", tmp_path / "given"
    assert main(arguments(images, alone, "mae", "--teacher", "no_such_teacher")) == 0
    said = capsys.readouterr().out
    assert "tokens " not in said
    assert "accuracy" not in said
    assert "12 of 16 patches predicted, 5 rows encoded, 17 decoded" in said
    assert {path.name for path in alone.iterdir()}.isdisjoint({"tokens", "tokenizer"})
    assert "accuracy" not in rows(alone)[0]
    assert json.loads((alone / "inputs.json").read_text())["tokenizer"] == "none"
    assert main(arguments(images, given, "mae", "--tokens", str(tokens))) == 0
    assert "mae reads no tokens" in capsys.readouterr().out
    assert_equal(alone, given)
    assert main(arguments(images, tmp_path / "crops", "mae", "--scale", "0.2", "1", "--hflip", "0.5")) == 0
    assert not (tmp_path / "crops" / "tokenizer").exists()


@pytest.mark.parametrize(
    ("objective", "more"),
    [("cae", ["--mask-ratio", "0.5", "--order", "blockwise"]), ("mae", []), ("mim", ["--cls-layer", "1"])],
)
def test_an_interrupted_run_ends_as_an_unbroken_one(images, tokens, tmp_path, monkeypatch, objective, more):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    more = [*more, "--tokens", str(tokens)]
    assert main(arguments(images, whole, objective, *more)) == 0

    def interrupted(objective, images, *rest, **more):
        if len(rows(broken)) == 8:
            raise KeyboardInterrupt
        return backward(objective, images, *rest, **more)

    backward = fit.backward
    with monkeypatch.context() as patched:
        patched.setattr(fit, "backward", interrupted)
        assert main(arguments(images, broken, objective, *more)) == 130
    assert len(rows(broken)) == 8
    assert main(["pretrain", "--resume", str(broken)]) == 0
    assert_equal(whole, broken)
    names = {"cae": {"token_loss", "alignment_loss"}, "mim": {"token_loss", "cls_loss"}, "mae": set()}
    assert names[objective] <= rows(whole)[0].keys()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_show_counts_what_the_objective_counts(objective, capsys):
    model = Model(name="custom", embed_dim=48, depth=3, num_heads=3)
    size = ["--model", "custom", "--embed-dim", "48", "--depth", "3", "--num-heads", "3"]
    assert main(["show", "--objective", objective, "--vocab-size", "40", *size]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("▶") == 1 + 4
    line = next(line for line in text.splitlines() if line.startswith("training"))
    with torch.device("meta"):
        counted = build_objective(Recipe(model=model, objective=Objective(name=objective)), 40)
    assert f" {counted.macs(training=True) / 1e9:.3f} GMAC" in line
