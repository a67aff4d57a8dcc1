"""``mapet quickstart``: how to resume it, and what it returns, on a few images of noise."""

import json
from pathlib import Path

import pytest
from PIL import Image

from forms import MODEL
from mapet.api.quickstart import quickstart
from mapet.cli import main
from mapet.config.recipe import Optimization, Recipe, Tokenizer
from mapet.evals.score import Score
from mapet.utils.errors import MapetError


def test_an_interrupted_quickstart_repeats_its_options(monkeypatch, capsys):
    def interrupted(*given, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr("mapet.api.quickstart.quickstart", interrupted)
    assert main(["quickstart", "--out", "a b", "--epochs", "0.5", "--max-images", "99"]) == 130
    assert "resume with: mapet quickstart --out 'a b' --epochs 0.5 --max-images 99\n" in capsys.readouterr().out


def test_fewer_images_than_a_step_are_refused_by_the_option_that_there_is(capsys, tmp_path):
    assert main(["quickstart", "--out", str(tmp_path / "q"), "--max-images", "1", "--accelerator", "cpu"]) == 2
    assert "--max-images must be at least 32, the images of a step, got 1." in " ".join(capsys.readouterr().err.split())
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
