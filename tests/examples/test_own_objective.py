"""The example of a user's own objective: trained, resumed, probed, exported and compared without a change of a file."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mapet
from mapet.build.objectives import OBJECTIVES
from mapet.build.pretrain import build_objective
from mapet.cli import main
from mapet.config import objectives as names
from mapet.config.recipe import OWNERS, Model, Objective, Recipe
from mapet.engine import fit
from mapet.engine.run import Run, load_checkpoint
from mapet.utils.errors import MapetError

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_objective.py"
SMALL = {"model": "custom", "embed_dim": 16, "depth": 2, "num_heads": 2, "image_size": 16, "patch_size": 4}
SMALL |= {"batch_size": 16, "epochs": 2, "warmup_epochs": 0, "accelerator": "cpu", "teacher": "pixels"}
CODES = {"vocab_size": 8, "iterations": 2}


def weights(run):
    return load_checkpoint(run.last)[1]


@pytest.fixture
def example(tmp_path):
    return Path(shutil.copy(EXAMPLE, tmp_path / "own.py"))


def test_an_own_objective_from_pretraining_to_export(images, tmp_path, example, monkeypatch, capsys):
    settings = {**SMALL, **CODES, "data": images, "objective": f"{example}:RandomGroups"}
    whole = mapet.pretrain(out=tmp_path / "whole", **settings)
    assert whole.completed == 6

    def interrupted(*given, **named):
        if Run(tmp_path / "broken").metrics.is_file():
            raise KeyboardInterrupt
        return backward(*given, **named)

    backward = fit.backward
    with monkeypatch.context() as patched:
        patched.setattr(fit, "backward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            mapet.pretrain(out=tmp_path / "broken", save_every=1, **settings)
    broken = mapet.resume(tmp_path / "broken")
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(broken).items())
    assert broken.metrics.read_bytes() == whole.metrics.read_bytes()
    assert json.loads((broken.folder / "inputs.json").read_text())["objective"] == names.file_hash(
        f"{example}:RandomGroups"
    )
    assert main(["show", "--recipe", str(whole.recipe), "--vocab-size", "8"]) == 0
    example.write_text(example.read_text() + "\n")
    with pytest.raises(MapetError, match="code of its objective"):
        mapet.resume(tmp_path / "broken")
    example.unlink()
    capsys.readouterr()
    assert main(["knn", str(whole.folder), "--data", str(images), "--accelerator", "cpu"]) == 0
    assert "top1" in capsys.readouterr().out
    assert main(["export", str(whole.folder), "--out", str(tmp_path / "export")]) == 0


@pytest.mark.parametrize("made", [None, torch.nn.Linear(1, 1), 3])
def test_an_objective_without_the_given_encoder_is_refused(made):
    recipe = Recipe(model=Model("custom", embed_dim=16, depth=1, num_heads=2, image_size=16, patch_size=4))
    mapet.register_objective("without-encoder", lambda recipe, encoder, vocabulary: made)
    with pytest.raises(MapetError, match=r"without-encoder must make .* whose attribute encoder is the given encoder"):
        build_objective(replace(recipe, objective=Objective(name="without-encoder")), 8)


def test_a_registered_objective_without_tokens(images, tmp_path):
    class Mean(torch.nn.Module):
        """Predict the mean colour from CLS."""

        reads_tokens = False

        def __init__(self, encoder, vocabulary):
            super().__init__()
            self.encoder, self.head = encoder, torch.nn.Linear(encoder.embed_dim, 3)

        def forward(self, images, tokens, order, seed):
            assert tokens.shape == (len(images), 0)
            return {"loss": (self.head(self.encoder(images, seed=seed)[:, 0]) - images.mean((2, 3))).square().mean()}

    mapet.register_objective("mean-colour", Mean)
    run = mapet.pretrain(data=images, out=tmp_path / "run", objective="mean-colour", **SMALL)
    assert run.completed == 6
    assert not (run.folder / "tokens").exists()
    for name in ("mae", "no/word"):
        with pytest.raises(MapetError, match="give another name"):
            mapet.register_objective(name, Mean)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("maped", 'Did you mean "mapet"?'),
        ("nowhere.py:Class", "does not exist"),
        ("EXAMPLE:RandomGroup", 'Did you mean "RandomGroups"?'),
        ("EXAMPLE:reveal", "has no class reveal"),
    ],
)
def test_what_stands_for_no_objective_is_refused(images, tmp_path, example, name, said):
    with pytest.raises(MapetError, match=r"objective|class") as refused:
        mapet.pretrain(
            data=images, out=tmp_path / "run", objective=name.replace("EXAMPLE", str(example)), **SMALL, **CODES
        )
    assert said in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_names_and_settings_are_those_of_the_configuration():
    assert {name: row.reads_tokens for name, row in OBJECTIVES.items()} == names.BUILT_IN
    owners = {setting: tuple(name for name, row in OBJECTIVES.items() if setting in row.settings) for setting in OWNERS}
    assert owners == OWNERS
    assert {setting for row in OBJECTIVES.values() for setting in row.settings} == OWNERS.keys()


def test_an_own_objective_is_compared(images, tmp_path, capsys):
    small = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    words = ["--data", str(images), "--out", str(tmp_path / "out"), *small, "--vocab-size", "8", "--epochs", "1"]
    names = ["--objectives", f"mae,{EXAMPLE}:RandomGroups", "--seeds", "1", "--evaluate", "knn", "--budget", "compute"]
    assert main(["compare", *words, *names]) == 0
    assert "RandomGroups" in (tmp_path / "out" / "results.csv").read_text()
    assert main(["compare", "--resume", str(tmp_path / "out"), "--accelerator", "cpu"]) == 0
    capsys.readouterr()
