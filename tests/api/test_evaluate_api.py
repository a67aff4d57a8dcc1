"""Evaluation from Python: the same scores as from the command line, features shared, settings refused by name."""

import json
import shutil
from typing import get_args

import pytest
import torch

import mapet
from forms import MODEL, in_all_forms
from mapet.api import features as extraction
from mapet.api.evaluate import evaluate
from mapet.api.protocols import PROTOCOLS
from mapet.api.scores import append
from mapet.cli import main
from mapet.config.evaluate import EvaluateSettings, Pool
from mapet.config.recipe import Recipe
from mapet.evals import attentive, features, fewshot, knn, linear
from mapet.evals.score import Score
from mapet.utils.errors import MapetError

CHANGED = {
    "knn": {"k": 5, "pool": "token"},
    "linear": {"seed": 3},
    "linear-mae": {"pool": "avg+token"},
    "linear-beit": {"seed": 1},
    "attentive": {"batch_size": 16},
    "fewshot": {"shots": (1, 3), "draws": 2},
}


@pytest.fixture(scope="module")
def forms(images, tmp_path_factory):
    return in_all_forms(Recipe(data=str(images), model=MODEL, seed=3), tmp_path_factory.mktemp("forms"))


def options(settings):
    words = []
    for name, value in settings.items():
        words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words


@pytest.mark.parametrize("name", PROTOCOLS)
def test_python_and_the_command_line_give_equal_scores(forms, images, tmp_path, name):
    run, python, command = forms["run"], tmp_path / "python.json", tmp_path / "command.json"
    found = evaluate(run, images, name, out=python, **CHANGED[name])
    given = ["--data", str(images), "--protocols", name, "--out", str(command), *options(CHANGED[name])]
    assert main(["evaluate", str(run), *given]) == 0
    assert json.loads(python.read_text()) == json.loads(command.read_text())
    (entry,) = json.loads(python.read_text())
    assert {what: Score(**entry[what]) for what in found[name]} == found[name]


def test_protocols_share_features_and_keep_their_order(forms, images, monkeypatch):
    pools, extract = [], extraction.extract_features
    monkeypatch.setattr(extraction, "extract_features", lambda *words: pools.append(words[-1]) or extract(*words))
    together = evaluate(forms["export"], images, ["knn", "linear-beit", "linear", "fewshot"], shots=(1,), draws=2)
    assert list(together) == ["knn", "linear-beit", "linear", "fewshot"]
    assert pools == ["avg", "layers"]
    for name, settings in {"knn": {}, "linear": {}, "fewshot": {"shots": (1,), "draws": 2}}.items():
        assert evaluate(forms["export"], images, [name], **settings) == {name: together[name]}


def test_default_settings_are_those_of_the_evaluations():
    defaults = EvaluateSettings()
    assert tuple(features.POOLS) == get_args(Pool)
    assert PROTOCOLS["knn"].describe(defaults) == knn.protocol()
    assert PROTOCOLS["fewshot"].describe(defaults) == f"{fewshot.protocol()}, {features.POOLS['avg']}"
    assert defaults.fewshot.shots == fewshot.SHOTS
    assert [PROTOCOLS[name].describe(defaults).split(",")[0] for name in PROTOCOLS if "linear" in name] == [
        text.split(",")[0] for text in linear.PROTOCOLS.values()
    ]


@pytest.mark.parametrize("name", ["linear-mae", "linear-beit", "attentive"])
def test_probes_by_gradient_descent_train_on_the_device(monkeypatch, name):
    """Whatever device the features are on."""
    monkeypatch.setattr(linear, "linear", lambda *given, device, **settings: device)
    monkeypatch.setattr(attentive, "attentive", lambda *given, device, **settings: device)
    read, device = extraction.LabelledFeatures((), (), 2), torch.device("meta")
    assert PROTOCOLS[name].run(read, EvaluateSettings(), device) == device


@pytest.mark.parametrize(
    ("protocols", "settings", "said"),
    [
        ("kn", {}, 'There is no protocol "kn". Did you mean "knn"'),
        ([], {}, "protocols is empty"),
        (["linear"], {"k": 3}, "^k only applies to knn, not linear; remove it"),
        (["attentive", "linear-beit"], {"pool": "token"}, "^pool only applies to knn, .* not attentive, linear-beit"),
        (["knn"], {"neighbours": 3}, 'There is no setting "neighbours"'),
        (["knn"], {"max_images": 0}, "^max_images must be >= 1, got 0"),
        (["knn"], {"num_heads": 2}, "^num_heads is fixed by"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_setting(forms, protocols, settings, said):
    with pytest.raises(MapetError, match=said) as caught:
        evaluate(forms["run"], protocols=protocols, **settings)
    assert "\n" not in str(caught.value)
    assert not (forms["run"] / "scores.json").exists()


def test_every_form_loads_as_the_same_encoder(forms):
    images = torch.randn(2, 3, 16, 16)
    heads = {"published.pth.tar": 2}
    rows = [mapet.load_encoder(path, num_heads=heads.get(name))(images) for name, path in forms.items()]
    assert rows[0].shape == (2, 17, 16)
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], rows[2])
    with pytest.raises(MapetError, match="has no classifier's head"):
        mapet.load_classifier(forms["run"])


@pytest.mark.parametrize(
    "content", ["{", "{}", "[1]", '["protocol"]', '[{"note": 1}]', '[{"protocol": "x"}, {"note": 1}]']
)
def test_scores_are_added_to_a_list_of_scores_alone(tmp_path, content):
    path = tmp_path / "scores.json"
    path.write_text(content)
    with pytest.raises(MapetError, match="is not a list of scores"):
        append(path, {"protocol": "knn"})
    assert path.read_text() == content


def test_unreadable_images_are_told_with_their_number_and_limit(forms, images, tmp_path, caplog):
    """One of 24 images of each split."""
    for split in ("train", "test"):
        for name in ("across", "along"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(12):
                shutil.copy(images / name / f"{number:02d}.png", tmp_path / split / name)
        (tmp_path / split / "along" / "03.png").write_bytes(b"")
    with caplog.at_level("INFO", "mapet"):
        evaluate(forms["run"], tmp_path, "knn", k=3, max_bad_fraction=0.05)
    assert caplog.text.count("1 of 24 images") == 2
    with pytest.raises(MapetError, match=r"1 of 24 images .*more than the 4\.00% allowed"):
        evaluate(forms["run"], tmp_path, "knn", k=3, max_bad_fraction=0.04)
