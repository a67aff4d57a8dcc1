"""Pre-training on tokens that are made as the images come: exact resume, processes, precision, refusals."""

import csv
import json
import shlex
import shutil

import pytest
import torch

from mapet.cli import main
from mapet.cli.options import parse
from mapet.cli.pretrain import Options
from mapet.cli.training import again
from mapet.config.recipe import Recipe, Runtime, Tokenizer
from mapet.config.runtime import PretrainRuntime
from mapet.engine.run import Run, load_checkpoint
from mapet.tokenizers.codebook import Codebook
from processes import Forked, under_torchrun, wait_for_step

STUDENT = ["--image-size", "16", "--patch-size", "4"]
MODEL = ["--model", "custom", "--embed-dim", "16", "--depth", "2", "--num-heads", "2", "--drop-path", "0.2", *STUDENT]
SMALL = [*MODEL, "--batch-size", "8", "--epochs", "2", "--warmup-epochs", "1", "--lr", "1e-3"]
CROPS = ["--scale", "0.2", "1", "--hflip", "0.5"]
FIT = ["--vocab-size", "16", "--iterations", "2"]


@pytest.fixture(scope="module")
def tokens(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenized") / "tokens"
    assert main(["tokenize", "--data", str(images), "--out", str(folder), *STUDENT, *FIT]) == 0
    return folder


@pytest.fixture(scope="module")
def tokenizer(tokens):
    return next(tokens.glob("*/tokenizer.json")).parent


@pytest.fixture(scope="module")
def whole(images, tokenizer, tmp_path_factory):
    """An uninterrupted run of 12 steps over random crops."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert main(arguments(images, tokenizer, folder, *CROPS)) == 0
    return folder


def arguments(images, tokenizer, out, *more):
    return ["pretrain", "--data", str(images), "--tokenizer", str(tokenizer), "--out", str(out), *SMALL, *more]


def losses(folder):
    path = Run(folder).metrics
    return [float(row["loss"]) for row in csv.DictReader(path.open())] if path.is_file() else []


def assert_equal(one, other):
    (step, ours), (theirs_step, theirs) = load_checkpoint(Run(one).last), load_checkpoint(Run(other).last)
    assert step == theirs_step == 12
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert Run(one).metrics.read_bytes() == Run(other).metrics.read_bytes()


def test_without_crops_it_is_the_run_with_stored_tokens(images, tokens, tokenizer, whole, tmp_path):
    """Bit-equal, and the same tensors in the checkpoint: nothing of the tokenizer is in it."""
    online, ready = tmp_path / "online", tmp_path / "ready"
    assert main(arguments(images, tokenizer, online)) == 0
    options = ["pretrain", "--data", str(images), "--tokens", str(tokens), "--out", str(ready), *SMALL]
    assert main(options) == 0
    assert_equal(online, ready)
    assert losses(online) != losses(whole)
    assert "; online" in (online / "log.txt").read_text()
    assert (online / "inputs.json").read_bytes() == (ready / "inputs.json").read_bytes()


def test_killed_and_resumed_is_uninterrupted(images, tokenizer, whole, tmp_path):
    out = tmp_path / "killed"
    options = arguments(images, tokenizer, out, *CROPS, "--workers", "2")
    process = Forked(tmp_path, *options)
    wait_for_step(out, 7, process)
    process.kill()
    process.wait()
    assert main(["pretrain", "--resume", str(out)]) == 0
    assert_equal(whole, out)


def test_two_processes_are_one(images, tokenizer, whole, tmp_path):
    out = tmp_path / "two"
    options = arguments(images, tokenizer, out, *CROPS, "--devices", "2", "--accelerator", "cpu")
    code, _, complaint = under_torchrun(tmp_path, *options)
    assert code == 0, complaint[-3000:]
    torch.testing.assert_close(losses(whole), losses(out), atol=1e-5, rtol=0)


def test_without_a_tokenizer_crops_make_one_in_the_run_and_no_store(images, tmp_path):
    out = tmp_path / "run"
    options = ["pretrain", "--data", str(images), "--out", str(out), *SMALL, *FIT, *CROPS, "--epochs", "1"]
    assert main(options) == 0
    assert (out / "tokenizer" / "tokenizer.json").is_file()
    assert not (out / "tokens").exists()
    before = (out / "tokenizer" / "tokenizer.json").stat().st_mtime_ns
    assert main(["pretrain", "--resume", str(out)]) == 0
    assert (out / "tokenizer" / "tokenizer.json").stat().st_mtime_ns == before
    assert main(arguments(images, out / "tokenizer", tmp_path / "other", *CROPS, "--epochs", "1")) == 0
    assert losses(out) == losses(tmp_path / "other")


def test_the_tokenizer_runs_in_float32_whatever_the_training_does(images, tokenizer, tmp_path, monkeypatch):
    """Outside autocast, without gradients, on the same images: the same tokens as in a float32 run."""
    encode, seen = Codebook.encode, {"float32": [], "bfloat16": []}
    for precision, found in seen.items():

        def watched(self, images, found=found):
            assert images.dtype == torch.float32
            assert not torch.is_autocast_enabled("cpu")
            assert not torch.is_grad_enabled()
            found.append(encode(self, images))
            return found[-1]

        monkeypatch.setattr(Codebook, "encode", watched)
        options = [*CROPS, "--precision", precision, "--epochs", "1"]
        assert main(arguments(images, tokenizer, tmp_path / precision, *options)) == 0
    assert len(seen["float32"]) >= 6
    assert all(torch.equal(a, b) for a, b in zip(*seen.values(), strict=True))
    assert losses(tmp_path / "float32") != losses(tmp_path / "bfloat16")


def test_unreadable_images_are_left_out_of_their_batches(images, tokenizer, tmp_path):
    mixed = shutil.copytree(images, tmp_path / "mixed")
    (mixed / "along" / "00.png").write_bytes(b"")
    out = tmp_path / "run"
    assert main(arguments(mixed, tokenizer, out, *CROPS, "--max-bad-fraction", "0.1")) == 0
    assert len(losses(out)) == 12
    assert (out / "unreadable-images.txt").read_text().count("\n") == 1


def test_another_tokenizer_on_resume_is_refused(images, tokenizer, tmp_path, capsys):
    mine, out = shutil.copytree(tokenizer, tmp_path / "mine"), tmp_path / "run"
    assert main(arguments(images, mine, out, "--epochs", "1")) == 0
    shutil.rmtree(mine)
    options = ["--data", str(images), "--out", str(tmp_path / "tokens"), *STUDENT, *FIT, "--seed", "1"]
    assert main(["tokenize", *options]) == 0
    next((tmp_path / "tokens").glob("*/tokenizer.json")).parent.rename(mine)
    capsys.readouterr()
    assert main(["pretrain", "--resume", str(out)]) == 2
    assert "other images or tokens" in capsys.readouterr().err
    assert main(["pretrain", "--resume", str(out), *CROPS]) == 2
    assert "begun with scale = None" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--tokens", "TOKENS"], "Pass --tokens or --tokenizer, not both"),
        (["--tokenizer", "None", "--tokens", "TOKENS", "--scale", "0.2", "1"], "--tokenizer instead"),
        (["--tokenizer", "None", "--tokens", "TOKENS", "--hflip", "0.5"], "--tokenizer instead"),
        (["--tokenizer", "/nowhere"], "not a tokenizer"),
        (["--patch-size", "2"], "(8, 8)"),
        (["--tokenizer", "None", "--tokens", "TOKENS", "--patch-size", "2"], "(8, 8)"),
        (["--scale", "0.5", "0.2"], "low <= high"),
        (["--scale", "0", "1"], "0 < low"),
        (["--ratio", "2", "1"], "low <= high"),
        (["--hflip", "1.5"], "must be >= 0 and <= 1"),
        (["--tokenizer", "None", *CROPS, "--devices", "2"], "--tokenizer"),
    ],
)
def test_what_cannot_work_is_one_line_before_anything_is_written(
    images, tokens, tokenizer, tmp_path, capsys, wrong, said
):
    wrong = [str(tokens) if word == "TOKENS" else word for word in wrong]
    assert main(arguments(images, tokenizer, tmp_path / "run", *wrong)) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_crops_and_tokenizer_survive_the_run_s_recipe(whole, tokenizer):
    from mapet.config.recipe import load

    recipe = load(Run(whole).recipe)
    assert (recipe.scale, recipe.ratio, recipe.hflip) == ((0.2, 1.0), (3 / 4, 4 / 3), 0.5)
    assert recipe.tokenizer == Tokenizer(path=str(tokenizer))
    assert Recipe(scale=(0.2, 1.0)).varied
    assert Recipe(hflip=0.1).varied
    assert not Recipe().varied
    assert json.loads((whole / "inputs.json").read_text())["tokenizer"]


@pytest.mark.parametrize(
    "runtime",
    [
        Runtime(),
        Runtime(devices=2, strategy="fsdp", micro_batch_size=2),
        Runtime(
            workers=0, accelerator="cpu", num_nodes=3, compile=True, save_every=7, cache_gib=0.5, max_bad_fraction=0.0
        ),
    ],
)
def test_the_command_that_goes_on_repeats_the_machine_settings(runtime):
    words = shlex.split(again("runs/my run", runtime))
    assert words[:4] == ["mapet", "pretrain", "--resume", "runs/my run"]
    assert parse(Options(), words[4:], "pretrain", "").runtime == PretrainRuntime.of(runtime)
    assert len(words) == 4 or runtime != Runtime()
