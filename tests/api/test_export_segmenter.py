"""A segmentation model leaves as weights, ONNX and torch.export programs that compute what the run's model does."""

import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

import mapet
from mapet.api.check import check
from mapet.api.export import loading_text
from mapet.cli import main
from mapet.config.flat import updated
from mapet.config.segmentation import SegmentRecipe
from mapet.engine.run import Run
from mapet.evals.upernet import Segmenter, sliding_logits
from mapet.interop import graphs
from mapet.utils.errors import MapetError
from mapet.utils.owned import RUN, find_foreign

CLASSES = ["sky", "grass", "dog"]
FORMATS = ["torch", *(["onnx"] if all(map(find_spec, graphs.ONNX_PACKAGES)) else [])]


def test_a_fork_can_train_after_an_export(tmp_path):
    """In a process of its own, as forks of this one trained."""
    code = (
        "import os, torch\n"
        "from pathlib import Path\n"
        "from mapet.interop.graphs import write_graph\n"
        "from mapet.method.encoder import Encoder\n"
        f"write_graph(Encoder(16, 8, embed_dim=8, depth=1, num_heads=2), 'torch', Path({str(tmp_path)!r}))\n"
        "torch.ones(1, requires_grad=True).sum().backward()\n"
        "if not (pid := os.fork()):\n"
        "    torch.ones(1, requires_grad=True).sum().backward()\n"
        "    os._exit(0)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A segmentation of random weights, statistics of batch norms included."""
    from mapet.build.segment import begin
    from mapet.config.file import save

    folder = tmp_path_factory.mktemp("segmentation") / "run"
    t = updated(SegmentRecipe(), init="random", data="/secret/place/scenes")
    run = Run.create(folder)
    save(t, run.recipe)
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2}
    torch.manual_seed(1)
    model = Segmenter(num_classes=len(CLASSES), channels=8, auxiliary_channels=4, **arguments)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            torch.nn.init.uniform_(tensor, 0.5, 1.5) if "_var" in name else torch.nn.init.normal_(tensor, std=0.3)
    begin(run, model, t, {"from": "random, custom, seed 0", "classes": CLASSES})
    score = {"value": 0.5, "low": 0.4, "high": 0.6, "count": 20}
    entry = {"from": "the run", "protocol": "UPerNet", "step": 0, "data": "/secret/place/scenes"}
    (folder / "scores.json").write_text(json.dumps([{**entry, "mIoU": score, "IoU dog": score}]))
    return folder


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    return mapet.export(run, tmp_path_factory.mktemp("export") / "segmenter", FORMATS)


@pytest.mark.parametrize("target", FORMATS)
def test_the_programs_compute_the_logits_of_the_run(run, folder, target):
    model = mapet.load_segmenter(run)
    with torch.no_grad():
        for batch in (1, 5, 3):
            images = 3 * torch.randn(batch, 3, 32, 32)
            if target == "torch":
                (found,) = torch.export.load(folder / graphs.FILES[target]).module()(images)
            else:
                session = pytest.importorskip("onnxruntime").InferenceSession(folder / graphs.FILES[target])
                found = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
            expected = model(images)
            assert len(expected.argmax(dim=1).unique()) > 1
            assert found.shape == (batch, len(CLASSES), 32, 32)
            torch.testing.assert_close(found, expected, atol=1e-4 * max(1.0, float(expected.abs().max())), rtol=0)


def test_the_folder_is_read_back_bit_by_bit(run, folder):
    ours, theirs = mapet.load_segmenter(run), mapet.load_segmenter(folder)
    assert theirs.classes == tuple(CLASSES)
    assert not theirs.training
    images = torch.randn(2, 3, 40, 56)
    with torch.no_grad():
        assert torch.equal(sliding_logits(ours, images), sliding_logits(theirs, images))
    assert check(folder) == {"model.safetensors": ""}


def test_every_line_of_the_card_runs_and_gives_one_mask(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    photo = Image.effect_noise((50, 40), 60).convert("RGB")
    photo.save("photo.png")
    found = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    assert len(found) == 1 + len(FORMATS)
    scope, masks = {}, []
    with torch.no_grad():
        for code in found:
            exec(code, scope)
            masks.append(scope["mask"])
    assert scope["names"] == tuple(CLASSES)
    assert all(mask.shape == (32, 32) and torch.equal(mask, masks[0]) for mask in masks)


def test_the_card_tells_the_training_without_paths(folder):
    card = (folder / "README.md").read_text()
    for said in ("# UPerNet over ViT/8, scenes\n", "sky, grass, dog", "- mIoU on scenes", "- data: scenes\n"):
        assert said in card
    assert "secret" not in card
    assert "IoU dog" not in card


def test_in_a_run_it_lies_under_export_and_is_ours(run, tmp_path):
    made = mapet.export(run, to="torch")
    assert made == run / "export" / "segmenter"
    assert find_foreign(run, RUN) is None
    assert f'mapet.load_segmenter("{made}")' in loading_text(made)
    with pytest.raises(MapetError, match="already holds an export"):
        mapet.export(run, to="torch")
    assert mapet.export(run, to="torch", overwrite=True) == made
    assert sorted(path.name for path in (run / "export").iterdir()) == ["segmenter"]


def test_a_damaged_export_and_other_folders_are_refused(run, folder, tmp_path, capsys):
    damaged = Path(shutil.copytree(folder, tmp_path / "damaged"))
    config = json.loads((damaged / "config.json").read_text())
    config["label_names"].reverse()
    (damaged / "config.json").write_text(json.dumps(config))
    with pytest.raises(MapetError, match="was changed since it was exported"):
        mapet.load_segmenter(damaged)
    for verb, source, reason in (
        ("export", run, "which timm lacks: --to onnx, torch or both"),
        ("export", folder, "holds a segmentation model: give the run that it was trained from"),
    ):
        assert main([verb, str(source), "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert reason in said
        assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
