"""The door: help at once, and every mistake one line with the way out."""

import subprocess
import sys

import pytest

from mapet.cli import VERBS, main
from mapet.cli.tokenizer import VERBS as TOKENIZER_VERBS

HEAVY = ("torch", "numpy", "timm", "lightning_fabric", "matplotlib", "tyro", "pydantic", "rich", "PIL")


def test_help_imports_nothing_heavy():
    code = f"import sys; from mapet.cli import main; main(['--help']); print(sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(verb in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", [*VERBS, *(f"tokenizer {verb}" for verb in TOKENIZER_VERBS)])
def test_every_verb_has_help_that_fits_80_columns(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    try:
        code = main([*verb.split(), "--help"])
    except SystemExit as end:
        code = end.code or 0
    text = capsys.readouterr().out
    assert code == 0
    assert f"mapet {verb}" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tokenise"], 'Did you mean "tokenize"?'),
        (["pretrain", "--epoch", "3"], 'Did you mean "--epochs"?'),
        (["pretrain", "--epochs", "many"], "--epochs"),
        (["pretrain", "--out"], "--out"),
        (["pretrain", "--data", "x"], "--out"),
        (["pretrain", "--objective", "mapte"], 'Did you mean "mapet"?'),
        (["pretrain", "--model", "vit_tinny"], 'Did you mean "vit_tiny"?'),
        (["pretrain", "--order", "blockwize"], 'Did you mean "blockwise"?'),
        (["pretrain", "--mask-ratio", "1.5"], "--mask-ratio"),
        (["pretrain", "--patch_size", "15"], "--patch-size"),
        (["pretrain", "--recipe", "in1k-vit-bas"], 'Did you mean "in1k-vit-base"?'),
        (["pretrain", "--recipe", "absent.yaml"], "absent.yaml"),
        (["pretrain", "--resume", "absent"], "holds no run"),
        (["pretrain", "--resume"], "--resume needs a value"),
        (["knn"], "needs FROM"),
        (["linear", "--protocol", "may"], 'Did you mean "mae"?'),
        (["export"], "needs FROM"),
        (["export", "absent", "--to", "tim"], 'Did you mean "timm"?'),
        (["export", "absent"], "FROM = absent does not exist"),
        (["tokenize", "--data", "x"], "--out"),
        (["show", "--groups", "0"], "--groups"),
        (["show", "--patch-size", "0"], "--patch-size"),
        (["show", "--model", "custom", "--embed-dim", "8", "--depth", "1", "--num-heads", "0"], "--num-heads"),
        (
            [
                "show",
                "--model",
                "custom",
                "--embed-dim",
                "30",
                "--depth",
                "1",
                "--num-heads",
                "2",
                "--pos-embed",
                "sincos",
            ],
            "4",
        ),
        (["pretrain", "--micro-batch-size", "0"], "--micro-batch-size"),
        (["pretrain", "--strategy", "fsdb"], "ddp or fsdp"),
        (["pretrain", "--workers", "-1"], "--workers"),
        (["pretrain", "--betas", "2", "3"], "--betas"),
        (["pretrain", "--iterations", "-1"], "--iterations"),
        (["pretrain", "--data", "/dev/null", "--out", "x"], "is a file"),
        (["export", "--to", "timm", "absent"], "FROM = absent does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, said, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert said in captured.err


@pytest.mark.parametrize("objective", ["mapet", "pet", "mim"])
def test_show_draws_and_counts(objective, capsys):
    assert main(["show", "--objective", objective, "--model", "vit_base"]) == 0
    text = capsys.readouterr().out
    assert {"mapet": "489", "pet": "343", "mim": "197"}[objective] in text
    assert text.count("▶") == 1 + 4
    assert max(map(len, text.splitlines())) <= 80


def test_a_device_without_memory_enough_is_one_line(monkeypatch, capsys):
    import torch

    def full(verb, arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("mapet.cli._run", full)
    assert main(["knn"]) == 2
    assert "--batch-size" in capsys.readouterr().err
