"""A checkpoint belongs to one run, by its settings; folders may be moved, and versions may add settings."""

import json
import shutil

import pytest
import torch
import yaml

from mapet.engine.checkpoint import Checkpoint
from mapet.engine.origin import _short, note_raised
from mapet.engine.run import Run
from mapet.utils.errors import MapetError

RECIPE = {
    "data": "/here/images",
    "seed": 3,
    "tokenizer": {"path": None, "teacher": "pixels", "teacher_weights": None},
    "objective": {"name": "/here/own.py:Mine"},
    "optimization": {"lr": 0.001, "betas": [0.9, 0.98]},
}


def begun(folder, **changes):
    run = Run.create(folder)
    run.recipe.write_text(yaml.safe_dump({**RECIPE, **changes}))
    run.append_metrics([{"step": 1, "loss": 0.5}])
    for step in (1, 2):
        run.save(step, {"model/x": torch.ones(3)})
    return run


def test_the_checkpoint_of_another_run_is_refused_in_one_line(tmp_path):
    one, other = begun(tmp_path / "one"), begun(tmp_path / "other", optimization={"lr": 0.002, "betas": [0.9, 0.98]})
    shutil.copy(other.last, one.checkpoints / "last.safetensors")
    with pytest.raises(MapetError) as stop:
        one.checkpoint
    line = str(stop.value)
    assert "\n" not in line
    assert "last.safetensors does not belong to" in line
    assert "trained with optimization.lr 0.002, not 0.001" in line


def test_a_changed_recipe_is_noticed(tmp_path):
    run = begun(tmp_path)
    text = run.recipe.read_text()
    run.recipe.write_text(text.replace("0.98", "0.88"))
    with pytest.raises(MapetError, match=r"betas \[0.9, 0.98\], not \[0.9, 0.88\]. Restore the one that was changed"):
        run.last
    run.recipe.write_text(text)
    assert run.completed == 2


def test_epochs_differ_only_if_they_were_raised(tmp_path):
    run = begun(tmp_path, optimization={"epochs": 3.0})
    run.recipe.write_text(yaml.safe_dump({**RECIPE, "optimization": {"epochs": 5.0}}))
    with pytest.raises(MapetError, match=r"trained with optimization\.epochs 3\.0, not 5\.0"):
        run.last
    note_raised(tmp_path, 4.0)
    with pytest.raises(MapetError, match=r"trained with optimization\.epochs 3\.0, not 5\.0"):
        run.last
    note_raised(tmp_path, 3.0)
    assert run.completed == 2


def test_a_changed_classifier_is_noticed(tmp_path):
    run = Run.create(tmp_path)
    run.classifier.write_text(json.dumps({"from": "/here/run", "model": {"num_heads": 2}, "classes": ["cat", "dog"]}))
    run.save(1, {"model/x": torch.ones(3)})
    run.classifier.write_text(run.classifier.read_text().replace("/here/run", "/there"))
    assert run.completed == 1
    run.classifier.write_text(run.classifier.read_text().replace("dog", "dof"))
    with pytest.raises(MapetError, match=r'trained with classes \["cat", "dog"\], not \["cat", "dof"\]'):
        run.last


def test_moved_folders_and_settings_that_only_one_has_are_no_difference(tmp_path):
    run = begun(tmp_path)
    moved = {**RECIPE, "data": "/there", "new": 5, "objective": {"name": "/there/own.py:Mine"}}
    del moved["seed"]
    run.recipe.write_text(yaml.safe_dump(moved, sort_keys=False))
    assert run.completed == 2


def test_what_a_checkpoint_says_of_its_run_is_under_its_fingerprint(tmp_path):
    run = begun(tmp_path)
    content = run.last.read_bytes()
    assert content.count(rb"\"recipe.yaml: seed\": 3") == 1
    (changed := tmp_path / "changed.safetensors").write_bytes(content.replace(rb"yaml: seed\": 3", rb"yaml: seed\": 4"))
    with pytest.raises(MapetError, match="does not match its fingerprint"):
        Checkpoint(changed).verify()


@pytest.mark.parametrize("content", ["", "- 1", "a: [", "\0", "2024-31-12"])
def test_an_unreadable_recipe_is_left_to_its_reader(tmp_path, content):
    run = begun(tmp_path)
    run.recipe.write_text(content)
    assert run.completed == 2
    run.save(3, {"model/x": torch.ones(3)})
    assert run.completed == 3


def test_a_changed_name_is_noticed_and_a_path_of_windows_is_none(tmp_path):
    run = begun(tmp_path, data="C:\\images", order="uniform")
    text = run.recipe.read_text()
    run.recipe.write_text(text.replace("C:\\images", "D:\\images"))
    assert run.completed == 2
    run.recipe.write_text(text.replace("uniform", "raster"))
    with pytest.raises(MapetError, match='trained with order "uniform", not "raster"'):
        run.last


def test_a_setting_that_a_file_lost_is_noticed_and_a_lost_file_is_not(tmp_path):
    """Versions add and remove settings of recipes only; a lost file is noticed by who needs it."""
    run = Run.create(tmp_path)
    run.classifier.write_text(json.dumps({"model": {"num_heads": 2}, "classes": ["cat", "dog"]}))
    run.save(1, {"model/x": torch.ones(3)})
    run.classifier.write_text(json.dumps({"model": {"num_heads": 2}}))
    with pytest.raises(MapetError, match=r'trained with classes \["cat", "dog"\], not none'):
        run.last
    run.classifier.unlink()
    assert run.completed == 1


@pytest.mark.parametrize("length", [57, 58])
def test_a_long_setting_is_cut(length):
    """Two quotes are added."""
    text = "x" * length
    assert _short(text) == (f'"{text}"' if length == 57 else f'"{text[:56]}...')


def test_values_are_shown_as_they_are_written():
    assert _short("Bär/日本") == '"Bär/日本"'
