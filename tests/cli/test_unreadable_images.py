"""One unreadable image in steps of one or two images: any objective, with one process and with two."""

import csv
import shutil

import pytest
import torch

from mapet.cli import main
from mapet.config.recipe import OBJECTIVES
from mapet.engine.run import Run
from processes import finished, pair

SIZES = ["--model", "custom", "--embed-dim", "16", "--depth", "2", "--num-heads", "2", "--image-size", "16"]
SMALL = [*SIZES, "--patch-size", "4", "--drop-path", "0.2", "--epochs", "1", "--warmup-epochs", "0", "--lr", "1e-3"]
TOLERANT = ["--max-bad-fraction", "0.1", "--accelerator", "cpu"]


@pytest.fixture(scope="module")
def damaged(images, tmp_path_factory):
    """48 images with labels and their tokens; one image was damaged since."""
    root = tmp_path_factory.mktemp("damaged")
    data = shutil.copytree(images, root / "images")
    options = ["--image-size", "16", "--patch-size", "4", "--vocab-size", "16", "--iterations", "3"]
    assert main(["tokenize", "--data", str(data), "--out", str(root / "tokens"), *options]) == 0
    sorted(data.rglob("*.png"))[5].write_bytes(b"")
    return root


def losses(folder):
    return [row["loss"] for row in csv.DictReader(Run(folder).metrics.open())]


def pretrain(damaged, out, objective, *more):
    source = [] if objective == "mae" else ["--tokens", str(damaged / "tokens")]
    data = ["--data", str(damaged / "images"), "--objective", objective]
    return ["pretrain", *data, *source, "--out", str(out), *SMALL, *TOLERANT, *more]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_processes_are_one_if_a_process_has_no_image(damaged, tmp_path, objective):
    assert main(pretrain(damaged, tmp_path / "one", objective, "--batch-size", "2")) == 0
    two = pretrain(damaged, tmp_path / "two", objective, "--batch-size", "2", "--devices", "2")
    finished(pair(tmp_path / "said", *two))
    one, both = ([float(loss) for loss in losses(tmp_path / name)] for name in ("one", "two"))
    assert len(one) == 24
    torch.testing.assert_close(torch.tensor(one), torch.tensor(both), atol=1e-5, rtol=0)


@pytest.mark.parametrize("objective", ["mapet", "mae"])
def test_a_step_of_one_image_that_is_unreadable_is_skipped(damaged, tmp_path, objective, capsys):
    assert main(pretrain(damaged, tmp_path / "run", objective, "--batch-size", "1")) == 0
    found = losses(tmp_path / "run")
    assert len(found) == 48
    assert found.count("") == 1
    assert "skipped   1 steps" in capsys.readouterr().out


def test_fine_tuning_with_mixup_goes_on_with_one_image_of_a_pair(damaged, tmp_path, capsys):
    options = [*SIZES, "--patch-size", "4", "--epochs", "1", "--warmup-epochs", "0", "--batch-size", "2", *TOLERANT]
    data = ["--data", str(damaged / "images")]
    assert main(["finetune", "random", *data, "--out", str(tmp_path / "run"), *options]) == 0, capsys.readouterr().err
    found = losses(tmp_path / "run")
    assert len(found) == 17  # of 34 training images
    assert "" not in found


def test_a_tokenizer_learns_the_same_if_a_process_has_no_image(damaged, tmp_path):
    """Its codes move by the images of both processes, and a filler is not among them."""
    sizes = ["--image-size", "16", "--patch-size", "4", "--embed-dim", "16", "--depth", "1", "--num-heads", "2"]
    codes = ["--vocab-size", "8", "--code-dim", "4", "--decoder-depth", "1", "--teacher", "pixels"]
    options = [*sizes, *codes, "--epochs", "1", "--warmup-epochs", "0", "--batch-size", "2", "--lr", "1e-3", *TOLERANT]
    command = ["tokenizer", "train-vqkd", "--data", str(damaged / "images"), *options]
    assert main([*command, "--out", str(tmp_path / "one")]) == 0
    finished(pair(tmp_path / "said", *command, "--out", str(tmp_path / "two"), "--devices", "2"))
    one, both = ([float(loss) for loss in losses(tmp_path / name)] for name in ("one", "two"))
    assert len(one) == 24
    torch.testing.assert_close(torch.tensor(one), torch.tensor(both), atol=1e-5, rtol=0)
