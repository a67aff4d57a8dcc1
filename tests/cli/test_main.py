"""The entry point: help at once, and every mistake one line with the way out."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from importlib import import_module
from io import BytesIO, TextIOWrapper

import pytest

from mapet.api.listing import MODELS, OBJECTIVES, PROTOCOLS, listing
from mapet.cli import main
from mapet.cli.completion import SHELLS
from mapet.cli.options import leaves
from mapet.cli.verbs import DISTRIBUTED, VERBS, module
from mapet.utils.signals import Signalled

WHAT = ("models", "objectives", "recipes", "protocols")
HEAVY = ("torch", "numpy", "timm", "lightning_fabric", "matplotlib", "transformers", "PIL")
EVERY = [name for name in VERBS if name != "tokenizer"]
SIZE = ["--model", "custom", "--embed-dim", "64", "--depth", "1", "--num-heads", "1"]
FORKS = f"""
import json, os, sys
import pydantic, rich, tyro
from mapet.cli import main
for number, arguments in enumerate(json.loads(sys.argv[1])):
    if not os.fork():
        sys.stdout = open(f"{{number}}.out", "w", encoding="utf-8")
        try:
            main(arguments)
        finally:
            print(set({HEAVY}) & sys.modules.keys(), flush=True)
            os._exit(0)
    os.wait()
"""


def run(code, **environment):
    """Run Python code; its output is bytes."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=250, env=os.environ | environment)


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What light commands print, then the heavy modules that they imported: each in a fork of one fresh process."""
    folder = tmp_path_factory.mktemp("printed")
    commands = [[*verb.split(), "--help"] for verb in EVERY] + [["list", what] for what in WHAT]
    environment = os.environ | {"COLUMNS": "80"}
    subprocess.run([sys.executable, "-c", FORKS, json.dumps(commands)], cwd=folder, env=environment, check=True)
    found = [(folder / f"{number}.out").read_text(encoding="utf-8").splitlines() for number in range(len(commands))]
    return {" ".join(command): lines for command, lines in zip(commands, found, strict=True)}


def test_help_imports_nothing_heavy():
    more = (*HEAVY, "tyro", "pydantic", "rich")
    done = run(f"import sys; from mapet.cli import main; main(['--help']); print(set({more}) & sys.modules.keys())")
    assert done.stdout.decode().splitlines()[-1] == "set()"


def test_help_lists_every_verb_once_in_80_columns(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert sorted(re.findall(r"^  ([a-z-]+)  ", text, re.M)) == sorted(name for name in VERBS if " " not in name)
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("verb", EVERY)
def test_the_help_of_a_verb_fits_one_screen_and_imports_nothing_heavy(verb, printed):
    *lines, heavy = printed[f"{verb} --help"]
    assert heavy == "set()"
    assert lines[0].startswith(f"usage: mapet {verb}")
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("  mapet ") for line in lines)
    for option in VERBS[verb].required:
        assert not option.startswith("--") or any(line.startswith(f"  {option}") for line in lines)


@pytest.mark.parametrize("verb", EVERY)
def test_help_all_shows_every_option_in_80_columns(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([*verb.split(), "--help-all"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    flags = {one.flag for one in leaves(import_module(module(verb)).Options())}
    assert flags <= set(re.findall(r"^(?:│ |  )(--[a-z][\w-]*)", text, re.M))


@pytest.mark.parametrize("columns", ["1", "5"])
@pytest.mark.parametrize("option", ["--help", "--help-all"])
def test_help_ends_in_a_very_narrow_terminal(option, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit):
        main(["show", option])
    assert "--objective" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["-h"], ["pretrain", "--help-all"]])
def test_a_closed_pipe_is_no_traceback(arguments):
    command = [sys.executable, "-m", "mapet", *arguments]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, timeout=60)
    assert done.stderr == b""
    assert done.returncode == 141


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize(
    "arguments", [["show", *SIZE], ["pretrain", "--help"], ["pretrain", "--help-all"], ["list", "recipes"]]
)
def test_output_in_any_encoding(arguments, encoding, monkeypatch):
    streams = {name: TextIOWrapper(BytesIO(), encoding, "strict") for name in ("stdout", "stderr")}
    with monkeypatch.context() as patch, suppress(SystemExit):
        for name, stream in streams.items():
            patch.setattr(sys, name, stream)
        assert main(arguments) == 0
    out, err = (stream.flush() or stream.buffer.getvalue() for stream in streams.values())
    assert err == b""
    assert out.decode(encoding)


def test_output_of_a_process_in_ascii():
    done = run(f"from mapet.cli import main; main({['show', *SIZE]})", PYTHONIOENCODING="ascii")
    assert done.stderr == b""
    assert done.stdout.decode("ascii")


@pytest.mark.parametrize("what", WHAT)
def test_list_prints_names_without_heavy_imports(what, printed):
    *lines, heavy = printed[f"list {what}"]
    assert heavy == "set()"
    names = [line.split()[0] for line in lines if line[0] != " "]
    assert names == list(listing(what))


def test_listed_names_are_those_of_the_package():
    from mapet.api.compare.evaluations import EVALUATIONS
    from mapet.config.flat import updated
    from mapet.config.recipe import Recipe
    from mapet.method.encoder import SIZES

    assert set(PROTOCOLS) == set(EVALUATIONS)
    assert set(MODELS) == {*SIZES, "custom"}
    for name, size in SIZES.items():
        assert MODELS[name] == f"width {size['embed_dim']}, depth {size['depth']}, {size['num_heads']} heads"
    for name in OBJECTIVES:
        assert updated(Recipe(), objective=name).objective.name == name
    assert "efficientnet_lite0" in listing("teachers")


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_knows_verbs_and_options(shell, capsys):
    if shell == "tcsh":
        pytest.importorskip("shtab")
    assert main(["--print-completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in ("pretrain", "train-vqkd", "mask-ratio"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tokenise"], 'Did you mean "tokenize"?'),
        (["pretrain", "--epoch", "3"], 'Did you mean "--epochs"?'),
        (["pretrain", "--epochs", "three"], '--epochs must be a number, got "three".'),
        (["pretrain", "--max-images=many"], '--max-images must be a whole number or None, got "many".'),
        (["pretrain", "--betas", "0.9", "--out", "x"], '--betas must be two numbers, got "0.9".'),
        (["pretrain", "--out"], "--out needs a value"),
        (["pretrain", "--data", "x"], "--out"),
        (["pretrain", "images", "--data", "x"], "IMAGES and --data are the same"),
        (["pretrain", "images", "more", "--out", "x"], 'Unexpected "more": mapet pretrain IMAGES --out RUN'),
        (["pretrain", "--objektive", "mim"], 'Did you mean "--objective"?'),
        (["pretrain", "--Seed", "1"], 'Did you mean "--seed"?'),
        (["pretrain", "--num_workers", "1"], 'Did you mean "--workers"?'),
        (["pretrain", "--batch", "1"], 'Did you mean "--batch-size"?'),
        (["pretrain", "--learning-rate", "1"], 'Did you mean "--lr"?'),
        (["pretrain", "--arch", "vit_base"], 'Did you mean "--model"?'),
        (["pretrain", "--output-dir", "x"], 'Did you mean "--out"?'),
        (["pretrain", "--dataset", "x"], 'Did you mean "--data"?'),
        (["pretrain", "--device", "cuda"], 'Did you mean "--accelerator"?'),
        (["pretrain", "--bf16"], 'Did you mean "--precision"?'),
        (["pretrain", "--objective", "beit"], 'Did you mean "mim"?'),
        (["pretrain", "--wandb", "x"], 'no option "--wandb". See mapet pretrain --help-all.'),
        (["list"], "WHAT"),
        (["list", "recipe"], 'Did you mean "recipes"?'),
        (["--print-completion", "powershell"], "bash, zsh, fish, tcsh"),
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
    assert main(["show", "--objective", objective, *SIZE]) == 0
    text = capsys.readouterr().out
    assert {"mapet": "489", "pet": "343", "mim": "197"}[objective] in text
    assert text.count("▶") == 1 + 4
    assert max(map(len, text.splitlines())) <= 80


def test_a_device_without_memory_enough_is_one_line(monkeypatch, capsys):
    import torch

    def full(arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("mapet.cli._run", full)
    assert main(["knn"]) == 2
    assert "--batch-size" in capsys.readouterr().err


def test_a_signal_has_its_exit_code_in_every_verb(monkeypatch, capsys):
    def command(arguments):
        raise Signalled(signal.SIGTERM)

    monkeypatch.setattr("mapet.cli.list_.command", command)
    assert main(["list", "models"]) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "mapet: interrupted.\n"


def test_a_verb_of_one_process_is_not_started_by_each_of_several(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, code in (("0", 0), ("1", 2)):
        monkeypatch.setenv("RANK", rank)
        assert main(["list", "models"]) == code
    assert "mapet (rank 1): mapet list works in one process: start it without torchrun" in capsys.readouterr().err
    assert set(DISTRIBUTED) < set(VERBS)


def test_a_comparison_is_resumed_by_its_own_verb(tmp_path, capsys):
    (tmp_path / "compare.yaml").touch()
    for verb in ("pretrain", "finetune", "segment"):
        assert main([verb, "--resume", str(tmp_path)]) == 2
        assert f"holds a comparison: run mapet compare --resume {tmp_path}." in capsys.readouterr().err
