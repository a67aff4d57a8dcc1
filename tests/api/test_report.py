"""Reports: one file for every kind of folder, whatever is damaged in it, opened in a real browser."""

import html
import json
import re
import shutil
from pathlib import Path

import pytest

import mapet
from browser import chromium
from forms import as_finetuning
from mapet.api.report.write import report_at_end
from mapet.cli import main
from mapet.engine.run import Run
from mapet.utils.errors import MapetError
from mapet.utils.lock import Lock, is_locked
from processes import Forked

RESULTS = Path(__file__).parents[2] / "results" / "cifar10"
MOST = 3_000_000  # bytes
VIT = {"model": "custom", "embed_dim": 16, "depth": 2, "num_heads": 2}
SQUARE = {"image_size": 16, "patch_size": 4}
STEPS = {"epochs": 1, "batch_size": 16, "warmup_epochs": 0, "accelerator": "cpu"}
KMEANS = {"teacher": "pixels", "vocab_size": 8, "iterations": 2, "restarts": 1}
COMPARE = {**VIT, **SQUARE, **STEPS, **KMEANS, "objectives": "mim,mae", "seeds": 1, "evaluate": "knn"}


@pytest.fixture(scope="module")
def folders(images, tmp_path_factory):
    """One folder of each kind."""
    root = tmp_path_factory.mktemp("report")
    run = root / "run"
    extras = {"probe_every": 1, "probe_data": labelled(images, root), "panel_every": 1}
    mapet.pretrain(data=images, out=run, **extras, **VIT, **SQUARE, **{**STEPS, "epochs": 2}, **KMEANS)
    mapet.finetune(run, images, root / "classifier", **STEPS)
    mapet.inspect_tokenizer(run / "tokens" / "tokenizer", images, root / "inspected", num_codes=2)
    mapet.compare(data=images, out=root / "compared", **COMPARE)
    return {name: root / name for name in ("run", "classifier", "inspected", "compared")}


def labelled(images, root):
    for split in ("train", "test"):
        shutil.copytree(images, root / "labelled" / split)
    return root / "labelled"


def text_of(path):
    return html.unescape(re.sub(r"<[^>]+>", " ", path.read_text().partition("<body>")[2]))


SHOWN = {
    "run": ("MaPeT: run", "Loss and token accuracy", "most frequent token of each position",
            "Predicted and true tokens, step-", "k-NN accuracy and effective rank", "codes are in use",
            "Patches are given one after another", "Attention maps", "nearest neighbours", "GMAC", "load_encoder",
            "objective"),
    "classifier": ("of 2 classes", "top1", "Confusion matrix", "Wrong with the highest confidence", "Least confident"),
    "inspected": ("grid of 4 × 4 tokens", "perplexity", "Patches of some codes", "Share of patches per code"),
    "compared": ("mim, mae", "Equal epochs", "best by the mean", "Accuracy of each method", "seeds: 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", SHOWN)
def test_one_file_without_network_shows_what_is_there(folders, tmp_path, name):
    path = mapet.report(folders[name], tmp_path / "report.html", images=2, most=20)
    content = path.read_text()
    assert len(content) < MOST
    assert "<script" not in content
    assert re.findall(r'(?:src|href)="(?!data:|#)', content) == []
    assert "Not available" not in content
    for said in SHOWN[name]:
        assert said in text_of(path) or f'alt="{said}' in content or said in content, said


def test_a_comparison_of_the_repository(tmp_path):
    path = mapet.report(RESULTS / "longer", tmp_path / "longer.html")
    assert "k-NN accuracy during training" in path.read_text()
    assert "Not available" not in path.read_text()


def test_text_is_escaped(images, tmp_path):
    as_finetuning(tmp_path / "run", ["<script>alert(1)</script>", "b"], data=images)
    (tmp_path / "run" / "scores.json").write_text(json.dumps([{"protocol": "<img src=x>",
        "top1": {"value": 0.5, "low": 0.4, "high": 0.6, "count": 10}}]))  # fmt: skip
    content = mapet.report(tmp_path / "run", images=0).read_text()
    assert "<script" not in content
    assert "&lt;img src=x&gt;" in content


def lose(name):
    def change(run):
        (shutil.rmtree if (run / name).is_dir() else Path.unlink)(run / name)

    return change


def garble(name):
    return lambda run: (run / name).write_bytes(b"\xff\x00 {")


@pytest.mark.parametrize(
    "damage",
    [lose("metrics.csv"), lose("checkpoints"), lose("tokens"), lose("provenance.json"), garble("recipe.yaml"),
     garble("metrics.csv"), garble("scores.json"), garble("probes.csv"), garble("seconds.json"),
     garble("checkpoints/last.safetensors"), garble("tokens/store.json")],
)  # fmt: skip
def test_a_damaged_run_has_a_report(folders, tmp_path, damage):
    run = shutil.copytree(folders["run"], tmp_path / "run")
    damage(run)
    content = mapet.report(run, images=1, most=10).read_text()
    assert "Recipe, command and versions" in content or "cannot be read" in content


def test_what_looks_wrong_is_said(folders, tmp_path):
    run = shutil.copytree(folders["run"], tmp_path / "run")
    header, *rows = (run / "metrics.csv").read_text().splitlines()
    index = header.split(",").index("loss")
    flat = [",".join([str(i + 1), *rows[0].split(",")[1:index], "3.0", *rows[0].split(",")[index + 1 :]])
            for i in range(60)]  # fmt: skip
    (run / "metrics.csv").write_text("\n".join([header, *flat]) + "\n")
    (run / "inputs.json").write_text(json.dumps({"images": 48 * 60}))
    (run / "unreadable-images.txt").write_text("one\tdamaged\n" * 100)
    found = text_of(mapet.report(run, images=0))
    for said in (
        "The loss is flat",
        "not finished",
        "100 of 2,880 images cannot be read",
        "not above what the position",
    ):
        assert said in found, said


def test_without_images_neither_model_nor_data_is_read(folders, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("read")

    for name in ("mapet.api.reveal.Revealer", "mapet.api.attend.attend", "mapet.data.dataset.open_dataset"):
        monkeypatch.setattr(name, refuse)
    for kind in ("run", "classifier"):
        assert "Not available" not in mapet.report(folders[kind], tmp_path / f"{kind}.html", images=0).read_text()


def test_only_a_report_is_replaced(folders, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("<html>mine</html>")
    with pytest.raises(MapetError, match=r"report\.html"):
        mapet.report(folders["inspected"], path)
    assert path.read_text() == "<html>mine</html>"
    path.unlink()
    first = mapet.report(folders["inspected"], path).read_text()
    assert mapet.report(folders["inspected"], path, refresh=30).read_text() != first


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: None, "is not a folder"),
        (lambda folder: folder.mkdir(), "holds nothing to report"),
    ],
)
def test_other_folders_are_refused(tmp_path, make, said, capsys):
    make(tmp_path / "other")
    assert main(["report", str(tmp_path / "other")]) == 2
    assert said in capsys.readouterr().err


def test_a_report_is_written_at_the_end_of_a_long_training(folders, tmp_path):
    run = shutil.copytree(folders["run"], tmp_path / "run")
    for seconds, written in ((59.0, False), (61.0, True)):
        Run(run).note_seconds(Run(run).completed, seconds)
        report_at_end(run)
        assert (run / "report.html").is_file() == written


def test_a_run_that_goes_on_is_known_by_its_lock(tmp_path):
    assert not is_locked(tmp_path)
    with Lock(tmp_path / "run", "training in"):
        seen = Forked(tmp_path, work=lambda: int(is_locked(tmp_path / "run")))
        assert seen.wait()[0] == 1
    assert not is_locked(tmp_path / "run")


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.mark.parametrize("name", ["run", "classifier", "inspected", "compared"])
def test_in_a_browser(folders, tmp_path, browser, name):
    """No broken image, no error, nothing wider than the window, nothing serious for axe, light and dark."""
    path = mapet.report(folders[name], tmp_path / "report.html", images=1, most=10)
    for width, dark in ((390, False), (390, True), (1280, False), (1280, True)):
        browser.open(path, width, dark)
        assert browser.faults() == []
        assert browser.run("document.images.length") > 0
        assert browser.serious() == []
