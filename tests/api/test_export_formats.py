"""One exported folder for timm, transformers, ONNX Runtime and torch, with a card whose lines run."""

import json
import re
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import mapet
from forms import MODEL, as_finetuning, in_all_forms
from mapet.api.check import check
from mapet.api.encoders import load_from
from mapet.api.export import loading_text
from mapet.api.training_notes import public, training_notes
from mapet.cli import main
from mapet.config.flat import updated
from mapet.config.recipe import Recipe
from mapet.engine.run import Run
from mapet.interop import graphs, hub
from mapet.utils.errors import MapetError

CLASSES = ["cat", "dog", "owl"]
FORMATS = ("timm", "torch", *(["onnx"] if all(map(find_spec, graphs.ONNX_PACKAGES)) else []))


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def runs(images, tmp_path_factory):
    """A pre-training with scores, and a classifier: as runs and exported, ``encoder`` and ``classifier``."""
    root = tmp_path_factory.mktemp("exported")
    recipe = updated(Recipe(data=str(images), model=MODEL), tokenizer=str(root / "secret" / "tokens"))
    run = in_all_forms(recipe, root)["run"]
    (run / "inputs.json").write_text(json.dumps({"tokenizer": "0123456789abcdef" * 2}))
    score = {"value": 0.5, "low": 0.4, "high": 0.6, "count": 20}
    entry = {
        "from": f"the run {run}",
        "protocol": "20-NN",
        "step": 9,
        "data": str(images),
        "limit": None,
        "k-NN": score,
    }
    (run / "scores.json").write_text(json.dumps([entry]))
    as_finetuning(root / "tuned", CLASSES, data=images)
    mapet.export(run, root / "encoder", FORMATS)
    mapet.export(root / "tuned", root / "classifier", FORMATS)
    return root


@pytest.fixture
def photo():
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((40, 30), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("name", ["encoder", "classifier"])
def test_transformers_computes_the_same_bits_as_timm(runs, name, photo):
    auto = pytest.importorskip("transformers")
    model = timm.create_model(f"local-dir:{runs / name}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    processed = auto.AutoImageProcessor.from_pretrained(runs / name)(photo, return_tensors="pt")["pixel_values"]
    assert torch.equal(processed, transform(photo)[None])
    theirs = auto.AutoModel.from_pretrained(runs / name).eval()
    encoder = mapet.load_encoder(runs / name)
    with torch.no_grad():
        for images in (processed, torch.randn(5, 3, 16, 16)):
            features = theirs(images).last_hidden_state
            assert torch.equal(features, model.forward_features(images))
            torch.testing.assert_close(features, encoder(images), atol=1e-5, rtol=0)


def test_pipelines_show_the_class_names_and_the_features(runs, photo):
    auto = pytest.importorskip("transformers")
    found = auto.pipeline("image-classification", str(runs / "classifier"))(photo)
    model = timm.create_model(f"local-dir:{runs / 'classifier'}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.no_grad():
        expected = dict(zip(CLASSES, model(transform(photo)[None])[0].softmax(0).tolist(), strict=True))
    assert {one["label"]: one["score"] for one in found} == pytest.approx(expected, abs=1e-6)
    features = auto.pipeline("image-feature-extraction", str(runs / "encoder"))(photo, return_tensors=True)
    assert features.shape == (1, 17, 16)


@pytest.mark.parametrize("name", ["encoder", "classifier"])
def test_every_line_of_the_card_runs(runs, name, photo, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs / name, tmp_path / name)
    photo.save("photo.png")
    card = Path(name, "README.md").read_text()
    found = re.findall(r"```python\n(.*?)```", card, re.S)
    assert len(found) == 2 + len(FORMATS)
    scope, results = {}, []
    for code in found:
        if "transformers" in code:
            pytest.importorskip("transformers")
        exec(code, scope)
        if "mapet" not in code:  # it crops before it resizes
            results.append(torch.as_tensor(scope["features" if name == "encoder" else "logits"]).detach())
    assert all(torch.allclose(one, results[0], atol=1e-4) for one in results)


def test_the_card_tells_how_the_encoder_was_trained_but_no_path(runs, images):
    card, settings = (runs / "encoder" / "README.md").read_text(), Recipe()
    for said in (
        f"/4, mapet, {images.name}\n",
        f"- objective: {settings.objective.name}\n",
        f"- epochs: {settings.optimization.epochs:g}\n- steps: 9\n",
        f"- data: {images.name}\n",
        f"hash {'0123456789abcdef' * 2}\n",
        f"- k-NN on {images.name} after 9 steps, 20-NN: 50.0 % (40.0 – 60.0)\n",
        "Features are the mean of the patches; `model(images)` gives CLS.",
    ):
        assert said in card
    tuned = (runs / "classifier" / "README.md").read_text()
    assert "- classes, in the order of the logits: cat, dog, owl\n" in tuned
    assert "`model(images)` gives the logits" in tuned
    for text in (card, tuned):
        assert not any(str(part) in text for part in (runs, images, images.parent, "secret"))


def test_a_tokenizer_is_told_only_where_its_tokens_were_predicted(runs, tmp_path):
    run = Run(shutil.copytree(runs / "run", tmp_path / "run"))
    found = load_from(run.folder)
    assert training_notes(found, run.folder)["tokenizer"] == f"hash {'0123456789abcdef' * 2}"
    (run.folder / "inputs.json").write_text(json.dumps({"tokenizer": "none"}))
    of_pixels = replace(found, recipe=updated(found.recipe, objective="mae"))
    assert "tokenizer" not in training_notes(of_pixels, run.folder)
    (run.folder / "inputs.json").unlink()
    assert "tokenizer" not in training_notes(found, run.folder)


@pytest.mark.parametrize(
    ("text", "path", "told"),
    [
        ("the run /home/me/runs/first after 9 steps", "", "the run first after 9 steps"),
        ("the run /home/my own/first, mae after 2 steps", "/home/my own/first", "the run first, mae after 2 steps"),
        ("/home/my own/images", "/home/my own/images", "images"),
        ("timm's vit_tiny_patch16_224", "vit_tiny_patch16_224", "timm's vit_tiny_patch16_224"),
        ("cifar10", "cifar10", "cifar10"),
        ("heads = width / 64", "x", "heads = width / 64"),
        ("~/code/own.py:Rows", "", "own.py:Rows"),
    ],
)
def test_paths_are_cut_to_their_last_part(text, path, told):
    assert public(text, path) == told


@pytest.mark.parametrize("target", [name for name in FORMATS if name != "timm"])
def test_check_finds_a_damaged_program(runs, tmp_path, target):
    folder = Path(shutil.copytree(runs / "encoder", tmp_path / "out"))
    assert check(folder) == {"model.safetensors": ""}
    content = bytearray((folder / graphs.FILES[target]).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / graphs.FILES[target]).write_bytes(bytes(content))
    assert f"{Path(graphs.FILES[target]).name} was changed" in check(folder)["model.safetensors"]
    (folder / graphs.FILES[target]).unlink()
    assert "cannot be read" in check(folder)["model.safetensors"]
    mapet.load_encoder(folder)  # weights alone are enough


def test_an_export_of_an_export_keeps_formats_apart_and_is_replaced_whole(runs, tmp_path):
    folder = mapet.export(runs / "encoder", tmp_path / "out", to="timm, torch")
    assert (folder / "torch" / "model.pt2").is_file()
    assert "torch/model.pt2" in loading_text(folder).replace("\\", "/")
    with pytest.raises(MapetError, match="already holds an export"):
        mapet.export(runs / "encoder", folder)
    mapet.export(runs / "encoder", folder, overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    (folder / "torch").mkdir()
    (folder / "torch" / "notes.txt").write_text("mine")
    with pytest.raises(MapetError, match=r'holds "notes\.txt", which no export wrote'):
        mapet.export(runs / "encoder", folder, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_kill_while_an_export_was_deleted_is_repaired(runs, tmp_path):
    """Programs are deleted first and weights last, so that what is left of an export is known as one."""
    folder = mapet.export(runs / "encoder", tmp_path / "out")
    for left in (["model.safetensors", "config.json"], ["model.safetensors"], []):
        shutil.copytree(folder, tmp_path / ".out.old")
        for path in (tmp_path / ".out.old").iterdir():
            if path.name not in left:
                path.unlink()
        mapet.export(runs / "encoder", folder, overwrite=True)
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_weights_are_deleted_last(runs, tmp_path, monkeypatch):
    folder, deleted = mapet.export(runs / "encoder", tmp_path / "out", to="torch"), []
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path, **given: deleted.append(path.name) or unlink(path, **given))
    mapet.export(runs / "encoder", folder, overwrite=True)
    kept = [name for name in deleted if name in ("model.pt2", "config.json", "model.safetensors", "README.md")]
    assert kept[0] == "model.pt2"
    assert kept[-1] == "model.safetensors"


def test_a_run_with_programs_can_be_overwritten(runs, tmp_path):
    from mapet.utils.owned import RUN, RUNS, find_foreign, require_ours

    run = Path(shutil.copytree(runs / "run", tmp_path / "run"))
    assert mapet.export(run, to="torch") == run / "export" / "timm"
    assert find_foreign(run, RUN) is None
    require_ours(run, RUNS)


def test_unknown_formats_and_missing_packages_are_one_line(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(graphs, "find_spec", lambda name: None)
    for to, reason in {"onxn": 'Did you mean "onnx"', "timm,onnx": "pip install 'mapet[onnx]'"}.items():
        assert main(["export", str(runs / "run"), "--out", str(tmp_path / "out"), "--to", to]) == 2
        said = capsys.readouterr().err
        assert reason in said
        assert len(said.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


class FakeHub:
    """Records what would be sent."""

    sent: list = []  # noqa: RUF012
    error: Exception | None = None

    def create_repo(self, name, *, private, exist_ok):
        if FakeHub.error:
            raise FakeHub.error
        assert private
        assert exist_ok
        return f"address of {name}"

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, commit_message):
        FakeHub.sent.append((repo_id, [name for name in allow_patterns if (Path(folder_path) / name).is_file()]))


def test_push_sends_the_files_of_the_export_and_nothing_else(runs, tmp_path, monkeypatch):
    package = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(package, "HfApi", FakeHub)
    FakeHub.sent.clear()
    mapet.export(runs / "run", tmp_path / "quiet")
    assert not FakeHub.sent
    mapet.export(runs / "run", tmp_path / "out", to="torch", push="me/model")
    assert FakeHub.sent == [("me/model", ["model.safetensors", "config.json", "README.md", "torch/model.pt2"])]
    monkeypatch.setattr(FakeHub, "error", OSError("401\nUnauthorized"))
    with pytest.raises(MapetError, match=r"me/model failed: 401 Unauthorized\. The export is in ") as caught:
        mapet.export(runs / "run", tmp_path / "other", push="me/model")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "other" / "config.json").is_file()


def test_a_hub_that_cannot_be_reached_is_one_line(runs, tmp_path, monkeypatch, capsys):
    package = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(package.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(package.constants, "ENDPOINT", "http://127.0.0.1:9")
    options = ["--out", str(tmp_path / "out"), "--push", "me/model"]
    assert main(["export", str(runs / "run"), *options]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--push me/model failed: [Errno 111] Connection refused" in said
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize("name", ["model", "me/", "me/../you", "a/b/c", ""])
def test_a_bad_name_is_refused_before_anything_is_written(runs, tmp_path, name):
    with pytest.raises(MapetError, match="push takes USER/NAME"):
        mapet.export(runs / "run", tmp_path / "out", push=name)
    assert not list(tmp_path.iterdir())
    assert hub.require_hub("me/model-1.0") is None


def test_a_class_name_that_is_not_utf_8_is_escaped_on_the_card(tmp_path):
    folder = mapet.export(as_finetuning(tmp_path / "run", ["a\udcff", "b"]), tmp_path / "out")
    assert r"a\udcff" in (folder / "README.md").read_text()
    assert mapet.load_classifier(folder).classes == ("a\udcff", "b")
