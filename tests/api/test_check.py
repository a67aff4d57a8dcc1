import logging
import shutil
from pathlib import Path

import pytest
import torch

import mapet
from forms import as_finetuning
from mapet.api.check import check
from mapet.cli import main
from mapet.engine.run import Run
from mapet.tokenizers.store import TokenStore
from mapet.utils.errors import MapetError
from mapet.utils.view import CenterCropResize
from packs import JPEG, noise, packed

FIXTURES = Path(__file__).parents[1] / "fixtures" / "v0.1"


def test_checkpoints_of_a_run_are_verified(tmp_path, capsys):
    run = Run.create(tmp_path / "run")
    for step in (1, 2):
        run.save(step, {"model/x": torch.ones(50)})
    assert main(["check", str(run.folder)]) == 0
    content = bytearray(run.last.read_bytes())
    content[-3] ^= 8
    run.last.write_bytes(bytes(content))
    assert main(["check", str(run.folder)]) == 1
    damaged, valid = capsys.readouterr().out.splitlines()[-2:]
    assert damaged.startswith("damaged   checkpoints/last.safetensors: ")
    assert valid == "valid     checkpoints/previous.safetensors"


def test_weights_that_are_not_finite_are_found(tmp_path):
    Run.create(tmp_path).save(1, {"model/x": torch.tensor([1.0, float("inf")])})
    assert "model/x has values" in check(tmp_path)["checkpoints/last.safetensors"]


def test_damaged_tokens_and_leftover_bytes_are_found(tmp_path):
    store = TokenStore.create(tmp_path, view=CenterCropResize((8, 8)), grid=(1, 2), vocabulary=9, tokenizer="x")
    store.append(["a", "b"], torch.tensor([[1, 2], [3, 8]]))
    store.release()
    assert check(tmp_path) == {"tokens.bin": ""}
    path = tmp_path / "tokens.bin"
    content = path.read_bytes()
    path.write_bytes(content[:-2] + b"\x07\x00")
    assert 'row 1, of the image "b", has tokens that do not match their hash' in check(tmp_path)["tokens.bin"]
    path.write_bytes(content + b"\x01")
    assert "has 9 bytes" in check(tmp_path)["tokens.bin"]
    path.write_bytes(content[:4])
    assert "sums.bin has 32 bytes, and its 1 images need 16" in check(tmp_path)["tokens.bin"]


@pytest.mark.parametrize("name", ["pictures.bin", "sums.bin", "labels.npy"])
def test_damaged_packs_are_found(tmp_path, name):
    images = tmp_path / "images"
    images.mkdir()
    folder = packed(noise(images), tmp_path / "pack", JPEG)
    assert check(folder) == {"pack.json": ""}
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 4
    (folder / name).write_bytes(bytes(content))
    assert "damaged" in check(folder)["pack.json"]


def test_what_has_no_fingerprint_is_named(caplog):
    with caplog.at_level(logging.INFO, "mapet"):
        for name in ("pretrain", "export", "pack/train", "vqkd"):
            assert not any(check(FIXTURES / name).values())
    for name in ("last.safetensors", "tokens.bin", "model.safetensors", "pictures.bin"):
        assert f"{name} was written without a fingerprint, so only" in caplog.text


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(MapetError, match="holds no run, tokens"):
        check(tmp_path)


def test_a_cut_recipe_is_found(tmp_path):
    run = as_finetuning(tmp_path / "run", ["a", "b"])
    assert not any(check(run).values())
    (run / "recipe.yaml").write_text((run / "recipe.yaml").read_text()[:-200])
    assert "recipe.yaml is damaged: it lacks settings" in check(run)["recipe.yaml"]


@pytest.mark.parametrize("text", ["", "{", "3"])
def test_every_file_of_a_run_in_json_is_read(tmp_path, text):
    run = as_finetuning(tmp_path / "run", ["a", "b"])
    files = sorted(run.glob("*.json"))
    assert files
    for path in files:
        path.write_text(text)
        assert f"{path.name} is damaged" in check(run).pop(path.name)
    (run / "notes.json").write_text("of a user")
    assert "notes.json" not in check(run)


@pytest.mark.parametrize("change", [lambda text: "", lambda text: text[:-40]])
def test_a_damaged_plan_of_a_comparison_is_found_and_never_filled_with_defaults(tmp_path, change):
    folder = shutil.copytree(FIXTURES / "compare", tmp_path / "compare")
    assert check(folder)["compare.yaml"] == ""
    plan = folder / "compare.yaml"
    plan.write_text(change(plan.read_text()))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert "compare.yaml is damaged" in check(folder)["compare.yaml"]
    with pytest.raises(MapetError, match=r"compare\.yaml is damaged: it (is empty|lacks settings)"):
        mapet.resume(folder)
    with pytest.raises(MapetError, match=r"compare\.yaml is damaged: it (is empty|lacks settings)"):
        mapet.compare(data=FIXTURES, out=folder, objectives=["mae"], evaluate=["finetune"])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"} == before
