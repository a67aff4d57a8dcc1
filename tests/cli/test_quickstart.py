"""``mapet quickstart``: how to resume it, and what it returns, on a few images of noise."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from forms import MODEL
from mapet.api.quickstart import CPU, quickstart, quickstart_recipe
from mapet.cli import main
from mapet.config.flat import updated
from mapet.config.quickstart import QuickstartSettings
from mapet.config.recipe import Optimization, Recipe, Tokenizer
from mapet.config.recipes.cifar10 import quickstart as small
from mapet.engine import distributed, precision
from mapet.evals.score import Score
from mapet.utils.errors import MapetError


def test_an_interrupted_quickstart_repeats_its_options(monkeypatch, capsys):
    def interrupted(*given, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr("mapet.api.quickstart.quickstart", interrupted)
    assert main(["quickstart", "--out", "a b", "--epochs", "0.5", "--max-images", "99"]) == 130
    assert "resume with: mapet quickstart --out 'a b' --epochs 0.5 --max-images 99\n" in capsys.readouterr().out


def test_options_change_the_recipe_of_the_machine():
    plain = quickstart_recipe(QuickstartSettings(accelerator="cpu"))
    assert plain == updated(small(), **CPU, precision=plain.precision)
    assert plain.objective.name == "mapet"
    assert (plain.num_masked, plain.objective.groups) == (32, 2)
    changed = quickstart_recipe(QuickstartSettings(epochs=0.5, max_images=99, seed=7, accelerator="cpu"))
    assert changed == updated(plain, epochs=0.5, max_images=99, seed=7)


@pytest.mark.parametrize("fastest", ["float32", "bfloat16"])
def test_a_gpu_has_thirty_epochs_of_all_images_in_the_precision_that_is_logged(monkeypatch, caplog, fastest):
    monkeypatch.setattr(distributed, "pick_device", lambda accelerator: torch.device("cuda"))
    monkeypatch.setattr(precision, "fastest_precision", lambda device: (fastest, "its instructions"))
    larger = {"batch_size": 256, "warmup_epochs": 2, "precision": fastest}
    expected = updated(small(), **larger, epochs=30, max_images=None)
    with caplog.at_level("INFO", "mapet"):
        assert quickstart_recipe(QuickstartSettings()) == expected
    assert f"precision {fastest}: its instructions" in caplog.text
    shorter = quickstart_recipe(QuickstartSettings(epochs=1, max_images=999))
    assert shorter == updated(expected, epochs=1, max_images=999)


def test_fewer_images_than_a_step_are_refused_by_the_option_that_there_is(capsys, tmp_path):
    assert main(["quickstart", "--out", str(tmp_path / "q"), "--max-images", "1", "--accelerator", "cpu"]) == 2
    assert "--max-images must be at least 16, the images of a step, got 1." in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "q").exists()


def test_the_result_holds_scores_figures_and_an_export(images, tmp_path, monkeypatch, capsys):
    for path in Path(images).rglob("*.png"):
        (tmp_path / "images" / path.parent.name).mkdir(parents=True, exist_ok=True)
        Image.open(path).resize((16, 16)).save(tmp_path / "images" / path.parent.name / path.name)
    recipe = Recipe(
        data=str(tmp_path / "images"),
        model=MODEL,
        tokenizer=Tokenizer(teacher="pixels", vocab_size=8, samples=64, iterations=2),
        optimization=Optimization(epochs=1, batch_size=12, warmup_epochs=0),
    )
    monkeypatch.setattr("mapet.api.quickstart.quickstart_recipe", lambda settings: recipe)
    monkeypatch.setattr("mapet.api.quickstart.LABELLED", 30)
    result = quickstart(tmp_path / "quick", accelerator="cpu")
    assert not capsys.readouterr().out
    assert list(result.scores) == ["random start", "after MaPeT"]
    kept = json.loads((tmp_path / "quick" / "quickstart.json").read_text())
    assert result.scores == {name: {what: Score(**s) for what, s in row.items()} for name, row in kept.items()}
    entries = json.loads((tmp_path / "quick" / "scores.json").read_text())
    steps, top1 = (sorted([one["step"], one["top1"]["value"]] for one in entries), result.scores)
    trained = result.run.completed
    assert steps == sorted(
        [step, score.value] for row, step in zip(top1.values(), (0, trained), strict=True) for score in row.values()
    )
    page = result.report.read_text()
    assert "Not measured yet" not in page
    assert page.count("before training: ") == sum(len(one.keys() & {"top1", "top5"}) for one in entries[:2])
    assert all(path.stat().st_size for path in result.figures)
    assert (result.export / "model.safetensors").is_file()
    assert str(result).count("%") == 4
    with pytest.raises(MapetError, match="holds a finished quickstart"):
        quickstart(tmp_path / "quick", accelerator="cpu")
    assert main(["quickstart", "--out", str(tmp_path / "other"), "--accelerator", "cpu"]) == 0
    assert str(result) in capsys.readouterr().out
