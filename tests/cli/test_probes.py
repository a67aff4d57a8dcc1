"""The probes through the command line, on a run of an encoder that was never trained."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from mapet.assemble import build_objective
from mapet.cli import main
from mapet.engine.run import Run, prefixed
from mapet.recipe import Model, Recipe, save


@pytest.fixture
def run(pictures, tmp_path):
    """A run folder with a checkpoint after 7 steps: 16 patches, width 16, 2 blocks."""
    model = Model(model="custom", embed_dim=16, depth=2, num_heads=2, image_size=16, patch_size=4)
    recipe = Recipe(data=str(pictures), model=model)
    made = Run.create(tmp_path / "run")
    save(recipe, made.recipe)
    made.save(7, prefixed("model", build_objective(recipe, 8).state_dict().items()))
    return made.folder


def probe(run, verb, *options):
    return main([verb, "--run", str(run), "--accelerator", "cpu", *options])


def entries(run):
    return json.loads((run / "scores.json").read_text())


@pytest.mark.parametrize(
    ("options", "names", "named"),
    [
        (["linear", "--protocol", "beit"], ["top1", "layer 1", "layer 2"], "linear, BEiT's 100 epochs"),
        (["linear", "--protocol", "mae"], ["top1"], "linear, MAE's 90 epochs"),
        (["attentive"], ["top1"], "attentive, CAE's"),
        (["fewshot", "--shots", "1", "3", "--draws", "3"], ["1-shot", "3-shot"], "t-interval over 3 draws"),
    ],
)
def test_a_probe_prints_and_adds_its_scores(run, capsys, options, names, named):
    assert probe(run, *options) == 0
    assert probe(run, *options, "--random", "--limit", "30") == 0
    text = capsys.readouterr().out
    for name in names:
        assert len(re.findall(rf"^{name} +\d+\.\d % \(", text, flags=re.MULTILINE)) == 2
    assert text.count(named) == 2
    first, second = entries(run)
    assert (first["step"], second["step"], second["limit"]) == (7, 0, 30)
    assert named in first["protocol"]
    assert list(first)[4:] == names
    assert first[names[0]].keys() >= {"value", "low", "high", "count"}
    assert ("note" in first[names[0]]) == ("beit" in options)


def test_the_best_layer_is_named(run, capsys):
    assert probe(run, "linear", "--protocol", "beit") == 0
    top = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("top1"))
    layer = re.search(r"(layer [12]), the best of 2 layers on a held-out tenth", top)[1]
    (entry,) = entries(run)
    assert entry["top1"]["value"] == entry[layer]["value"]


@pytest.mark.parametrize("options", [["linear", "--protocol", "beit"], ["attentive"], ["fewshot", "--shots", "2"]])
def test_the_batch_of_features_does_not_matter(run, options, monkeypatch):
    assert probe(run, *options) == 0
    monkeypatch.setattr("mapet.cli.probe.BATCH", 7)
    assert probe(run, *options) == 0
    first, second = entries(run)
    for name in list(first)[4:]:
        assert first[name]["value"] == pytest.approx(second[name]["value"], abs=0.101)  # one of some ten test pictures


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["attentive", "--memory", "1e-6"], r"48 pictures take 0\.\d\d GiB, more than --memory 1e-06"),
        (["linear", "--protocol", "beit", "--memory", "1e-6"], "--limit"),
        (["attentive", "--batch-size", "1"], "at least 2"),
        (["attentive", "--pool", "token"], 'no option "--pool"'),
        (["linear", "--protocol", "biet"], 'Did you mean "beit"'),
        (["linear", "--protocol", "beit", "--pool", "token"], "leave --pool out"),
        (["knn", "--pool", "patches"], 'There is no pool "patches"'),
        (["fewshot", "--pool", "layers"], 'There is no pool "layers"'),
        (["fewshot", "--shots", "0"], "at least 1 labelled picture"),
        (["fewshot", "--shots", "100"], "fewer than 100 shots"),
        (["fewshot", "--draws", "1"], "--draws 1"),
        (["fewshot", "--run", "absent"], "holds no run"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(run, capsys, options, said):
    assert probe(run, *options) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert re.search(said, captured.err)
    assert not (run / "scores.json").exists()


@pytest.mark.parametrize("verb", ["attentive", "fewshot", "linear"])
def test_labels_are_needed(pictures, run, tmp_path, capsys, verb):
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted(Path(pictures).rglob("*.png"))[:20]):
        shutil.copy(path, flat / f"{number}.png")
    assert probe(run, verb, "--data", str(flat)) == 2
    assert "no labels" in capsys.readouterr().err


def test_room_is_counted_as_it_is_taken(run):
    """The refusal's number is the size of what would have been stored."""
    from mapet.assemble import load_encoder
    from mapet.cli.probe import Probe, _check_room
    from mapet.errors import MapetError
    from mapet.evals.features import POOLS, UNPOOLED, features

    encoder, _, _ = load_encoder(run)
    for pool in (*POOLS, *UNPOOLED):
        found, _ = features(encoder, [(torch.zeros(5, 3, 16, 16), torch.zeros(5))], pool=pool)
        size = found.numel() * found.element_size() / 2**30
        _check_room(encoder, pool, 5, size)
        with pytest.raises(MapetError, match="5 pictures"):
            _check_room(encoder, pool, 5, size * 0.999)
    assert Probe().memory == 16
