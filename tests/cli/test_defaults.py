"""What all verbs have in common: how they are called, and what happens unless it is asked for."""

from dataclasses import fields
from importlib import import_module
from inspect import signature

import pytest

from mapet.cli import main
from mapet.cli.options import leaves
from mapet.cli.verbs import GROUPS, SUBVERBS, VERBS, module
from mapet.config.evaluate import FewshotSettings, KNNSettings
from mapet.config.segmentation import ShapesSettings
from mapet.config.verbs import PackSettings
from mapet.data.packing import Packing
from mapet.data.shapes import compose_shapes
from mapet.evals.fewshot import fewshot
from mapet.evals.knn import knn

NAMES = [name for names in GROUPS.values() for name in names if name != "tokenizer"]
NAMES += [f"tokenizer {name}" for name in SUBVERBS]
GIVEN = {  # what a verb does without options, if its help says so
    ("quickstart", "out"): "quickstart",
    ("bench", "out"): "bench",
    ("export", "to"): "timm",
    ("evaluate", "protocols"): "knn,linear",
    ("transfer", "protocols"): "knn,linear",
    ("linear", "protocol"): "quick",
    ("segment-probe", "protocols"): "segment-linear,segment-knn",
}


@pytest.mark.parametrize("verb", NAMES)
def test_a_usage_is_the_call_of_its_verb(verb):
    about = VERBS[verb]
    assert about.usage == verb or about.usage.startswith(f"{verb} ")
    known = {one.name for one in leaves(import_module(module(verb)).Options())}
    assert set(about.words.values()) <= known | {"recipe", "resume"}
    assert all(word in about.usage for word in about.words)


@pytest.mark.parametrize("verb", NAMES)
def test_nothing_is_replaced_switched_on_or_chosen_unless_asked(verb):
    options = import_module(module(verb)).Options()
    own = [one for one in leaves(options) if one.owner.__module__.startswith("mapet.cli")]
    chosen = {(verb, one.name): one.default for one in own if one.default not in ("", None, False)}
    assert chosen == {key: value for key, value in GIVEN.items() if key[0] == verb}
    assert not [one.name for one in leaves(options) if one.name == "overwrite" and one.default is not False]


@pytest.mark.parametrize(
    ("called", "settings"),
    [(compose_shapes, ShapesSettings), (Packing, PackSettings), (knn, KNNSettings), (fewshot, FewshotSettings)],
)
def test_what_settings_call_has_their_defaults(called, settings):
    given = {name: one.default for name, one in signature(called).parameters.items()}
    shared = {one.name: one.default for one in fields(settings) if one.name in given}
    assert len(shared) > 1
    assert shared == {name: given[name] for name in shared}


REQUIRED = [(verb, part) for verb in NAMES for part in VERBS[verb].required]


@pytest.mark.parametrize(("verb", "missing"), REQUIRED)
def test_what_a_usage_requires_is_asked_for(verb, missing, tmp_path, monkeypatch, capsys):
    """Before anything is read or written; what stands behind a missing word takes its place."""
    monkeypatch.chdir(tmp_path)
    given = [part for part in VERBS[verb].required if part != missing]
    words = [word for part in given for word in ([part, "there"] if part.startswith("--") else ["there"])]
    assert main([*verb.split(), *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert ("A comparison needs" if verb == "compare" else f"mapet {verb} needs") in said
    assert not list(tmp_path.iterdir())
