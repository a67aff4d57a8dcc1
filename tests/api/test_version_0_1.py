"""Folders that version 0.1 wrote are loaded, probed, resumed and exported; ``fixtures/v0.1`` holds some."""

import shutil
from pathlib import Path

import pytest
import torch

from mapet.cli import main
from mapet.engine.run import load_checkpoint

FIXTURES = Path(__file__).parents[1] / "fixtures" / "v0.1"
MADE_IN = "/tmp/v01"


@pytest.fixture
def old(tmp_path):
    """A copy of all folders, as if version 0.1 had written them here."""
    root = tmp_path / "old"
    shutil.copytree(FIXTURES, root)
    for path in (*root.rglob("*.yaml"), *root.rglob("*.json")):
        path.write_text(path.read_text().replace(MADE_IN, str(root)))
    return root


def rewind(run):
    """Take a run back to the checkpoint of step 2."""
    shutil.copy(run / "checkpoints" / "step-00000002.safetensors", run / "checkpoints" / "last.safetensors")


def assert_close(a, b):
    (step, ours), (other, theirs) = (load_checkpoint(run / "checkpoints" / "last.safetensors") for run in (a, b))
    assert step == other
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-5, rtol=1e-4)


def test_a_pre_training_is_resumed(old):
    rewind(old / "pretrain")
    assert main(["pretrain", "--resume", str(old / "pretrain"), "--accelerator", "cpu"]) == 0
    assert_close(old / "pretrain", FIXTURES / "pretrain")


@pytest.mark.skipif(not torch.__version__.startswith("2.11."), reason="other versions of torch draw other weights")
def test_its_recipe_trains_the_same_again(old, tmp_path):
    words = [
        "--recipe",
        str(old / "pretrain" / "recipe.yaml"),
        "--out",
        str(tmp_path / "again"),
        "--accelerator",
        "cpu",
    ]
    assert main(["pretrain", *words]) == 0
    assert_close(tmp_path / "again", FIXTURES / "pretrain")


@pytest.mark.parametrize("name", ["pretrain", "finetune", "export"])
def test_encoders_are_probed(old, name, capsys):
    assert main(["knn", str(old / name), "--data", str(old / "images"), "--k", "3", "--accelerator", "cpu"]) == 0
    assert "top1" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_runs_are_exported(old, name, tmp_path):
    assert main(["export", str(old / name), "--out", str(tmp_path / "timm")]) == 0
    assert main(["knn", str(tmp_path / "timm"), "--data", str(old / "images"), "--k", "3"]) == 0


@pytest.mark.parametrize("name", ["pretrain", "finetune", "vqkd"])
def test_a_finished_run_is_resumed_without_effect(old, name):
    verb = {"pretrain": ["pretrain"], "finetune": ["finetune"], "vqkd": ["tokenizer", "train-vqkd"]}[name]
    assert main([*verb, "--resume", str(old / name), "--accelerator", "cpu"]) == 0
    assert_close(old / name, FIXTURES / name)


def test_tokens_are_continued_and_used(old, tmp_path):
    before = (old / "pretrain" / "tokens" / "tokens.bin").read_bytes()
    words = "--teacher pixels --codes 8 --samples 128 --iterations 2 --image-size 16 --patch-size 4 --accelerator cpu"
    assert main(["tokenize", str(old / "images"), "--out", str(old / "pretrain" / "tokens"), *words.split()]) == 0
    assert (old / "pretrain" / "tokens" / "tokens.bin").read_bytes() == before
    tiny = "--model custom --embed-dim 16 --depth 2 --num-heads 2 --image-size 16 --patch-size 4 --batch-size 12"
    words = [*tiny.split(), "--epochs", "1", "--warmup-epochs", "0", "--accelerator", "cpu"]
    tokens = ["--tokens", str(old / "pretrain" / "tokens"), "--out", str(tmp_path / "run")]
    assert main(["pretrain", "--data", str(old / "images"), *tokens, *words]) == 0


@pytest.mark.parametrize("folder", ["pretrain/tokens/tokenizer", "vqkd"])
def test_tokenizers_are_inspected(old, folder, tmp_path):
    data, out = str(old / "images" / "train"), str(tmp_path / "inspected")
    assert main(["tokenizer", "inspect", str(old / folder), data, "--out", out, "--accelerator", "cpu"]) == 0


def test_a_pack_is_trained_on(old, tmp_path):
    tiny = "--model custom --embed-dim 16 --depth 2 --num-heads 2 --image-size 16 --patch-size 4 --batch-size 12"
    words = [*tiny.split(), "--epochs", "1", "--warmup-epochs", "0", "--accelerator", "cpu", "--objective", "mae"]
    assert main(["pretrain", "--data", str(old / "pack"), "--out", str(tmp_path / "run"), *words]) == 0


def test_a_comparison_is_resumed(old, capsys):
    assert main(["compare", "--resume", str(old / "compare"), "--accelerator", "cpu"]) == 0
    assert "2/2" in capsys.readouterr().out


def test_a_run_is_overwritten(old):
    run = old / "pretrain"
    tiny = "--model custom --embed-dim 16 --depth 2 --num-heads 2 --image-size 16 --patch-size 4 --batch-size 12"
    words = [*tiny.split(), "--epochs", "1", "--warmup-epochs", "0", "--accelerator", "cpu", "--objective", "mae"]
    assert main(["pretrain", "--data", str(old / "images"), "--out", str(run), "--overwrite", *words]) == 0
    assert not (run / "tokens").exists()
