"""Reports: one file for every kind of folder, whatever is damaged in it, opened in a real browser."""

import html
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import mapet
from browser import chromium
from forms import as_finetuning
from mapet.api.report import finetuning
from mapet.api.report.comparison import seconds_of
from mapet.api.report.write import report_at_end
from mapet.cli import main
from mapet.engine.run import Run
from mapet.utils.errors import MapetError
from mapet.utils.lock import Lock, is_locked
from processes import Forked

RESULTS = Path(__file__).parents[2] / "results" / "cifar10"
FIXTURES = Path(__file__).parents[1] / "fixtures" / "v0.1"
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
    "compared": ("mim, mae", "Equal epochs", "best by the mean", "Accuracy of each method", "seeds: 1",
                 "One seed has no interval: differences may be chance."),
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
    several = mapet.report(RESULTS, tmp_path / "several.html").read_text()
    assert "3 seeds each" in several
    assert "One seed has no interval" not in several


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


def cut(name, lines):
    return lambda run: (run / name).write_text("".join((run / name).read_text().splitlines(keepends=True)[:lines]))


def empty(name):
    return lambda run: (run / name).write_bytes(b"")


LAST = "checkpoints/last.safetensors"
DAMAGES = {  # and what the notes say of it
    "lost metrics": (lose("metrics.csv"), "metrics.csv is missing"),
    "lost checkpoints": (lose("checkpoints"), ""),
    "lost tokens": (lose("tokens"), ""),
    "lost provenance": (lose("provenance.json"), ""),
    "other recipe": (garble("recipe.yaml"), "recipe.yaml is not YAML: it is not text in UTF-8 (byte 0)"),
    "empty recipe": (empty("recipe.yaml"), "recipe.yaml is damaged: it is empty"),
    "cut recipe": (cut("recipe.yaml", 21), "recipe.yaml is damaged: it lacks settings"),
    "other metrics": (garble("metrics.csv"), "metrics.csv is damaged: it lacks the steps 1-6"),
    "cut metrics": (cut("metrics.csv", 4), "metrics.csv is damaged: it lacks the steps 4-6"),
    "other scores": (garble("scores.json"), "scores.json is damaged"),
    "other probes": (garble("probes.csv"), "probes.csv is damaged"),
    "other seconds": (garble("seconds.json"), "seconds.json is damaged"),
    "empty inputs": (empty("inputs.json"), "inputs.json is damaged"),
    "other provenance": (garble("provenance.json"), "provenance.json is damaged"),
    "other checkpoint": (garble(LAST), "last.safetensors is not a readable checkpoint (not a whole safetensors file"),
    "other tokens": (garble("tokens/store.json"), ""),
}
RAW = r"codec can|Error\(s\)|Traceback|Errno|Error:|None\b.*None|Expecting value"  # what no reader should see


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_run_has_a_report(folders, tmp_path, name):
    """It says what is damaged, in plain words, and states nothing that is not known."""
    run = shutil.copytree(folders["run"], tmp_path / "run")
    damage, noted = DAMAGES[name]
    damage(run)
    path = mapet.report(run, images=int("checkpoint" in name or "tokens" in name), most=10)
    found = text_of(path)
    assert noted in found
    assert not re.search(RAW, found.partition("How the run was started")[0])
    assert ("Run: run" if "recipe" in name else "MaPeT: run") in found
    assert "6 of 6 steps" in found or "A run of 6 steps" in found or "inputs" in name
    assert "not finished" not in found
    assert "vit_tiny" not in found
    titles = re.findall(r"<h2[^>]*>(.*?)</h2>", path.read_text())
    assert {"Training", "What the encoder has learned", "Recipe, command and versions"} <= set(titles)
    if "recipe" in name:  # all that the recipe does not tell is there
        assert titles[2:] == ["Predicted tokens on the way", "Recipe, command and versions"]
        assert "Loss and token accuracy over steps" in path.read_text()
        assert "Not available" not in found.partition(titles[-1])[0]


@pytest.mark.parametrize("damage", [empty("recipe.yaml"), cut("recipe.yaml", 40)])
def test_a_cut_recipe_is_refused_where_it_is_read(folders, images, tmp_path, damage, capsys):
    run = shutil.copytree(folders["run"], tmp_path / "run")
    damage(run)
    for words in (["knn", run, "--data", images], ["reveal", run, images / "across" / "00.png"], ["export", run]):
        assert main([*map(str, words), "--out", str(tmp_path / "out.png")]) == 2
        assert f"{run / 'recipe.yaml'} is damaged" in capsys.readouterr().err


def test_damaged_tables_of_a_comparison_are_named(folders, tmp_path):
    folder = shutil.copytree(folders["compared"], tmp_path / "compared")
    garble("results.csv")(folder)
    assert "results.csv is damaged" in text_of(mapet.report(folder))
    for content in (b"\xff\x00 {", b"", (folder / "table.csv").read_bytes().replace(b",", b",x")):
        (folder / "table.csv").write_bytes(content)
        with pytest.raises(MapetError, match=r"table\.csv is damaged"):
            mapet.report(folder)


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
        (lambda folder: folder.mkdir() or (folder / "tokenizer.json").touch(), "holds a tokenizer: mapet tokenizer"),
    ],
)
def test_other_folders_are_refused(tmp_path, make, said, capsys):
    make(tmp_path / "other")
    assert main(["report", str(tmp_path / "other")]) == 2
    assert said in capsys.readouterr().err


def test_the_share_of_waiting_is_told_where_it_is_known(folders, tmp_path):
    run = Run(shutil.copytree(folders["run"], tmp_path / "run"))
    run.note_seconds(run.completed, 60.0, 15.0)
    assert "25% of the time" in mapet.report(run.folder, images=0).read_text()
    (run.folder / "seconds.json").write_text('{"step": 3, "seconds": 60.0}')  # of an older version
    assert "waiting for data" not in mapet.report(run.folder, images=0).read_text()


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
    for width, dark in ((360, False), (390, False), (390, True), (1280, False), (1280, True)):
        browser.open(path, width, dark)
        assert browser.faults() == []
        assert browser.run("document.images.length") > 0
        assert browser.serious() == []


@pytest.mark.parametrize(("kind", "verb"), [("pretrain", "pretrain"), ("finetune", "finetune"), ("vqkd", "")])
def test_runs_of_version_0_1_are_not_taken_for_damaged(tmp_path, kind, verb):
    """Their recipes have other names, and checkpoints do not say what they belong to."""
    path = mapet.report(FIXTURES / kind, tmp_path / "report.html", images=0)
    found, titles = text_of(path), re.findall(r"<h2[^>]*>(.*?)</h2>", path.read_text())
    assert "damaged" not in found
    assert {"Training", "Recipe, command and versions"} <= set(titles)
    assert f"mapet {verb} --recipe FILE" in found or not verb
    assert "pretrain --recipe" not in found or verb == "pretrain"


def test_a_classifier_without_mistakes_has_none_to_show():
    found = type("Found", (list,), {"classes": ("cat", "dog")})
    sure = found(SimpleNamespace(probabilities=(probability, 1 - probability)) for probability in (0.9, 0.8))
    images = [Image.new("RGB", (8, 8))] * 2
    first, second = finetuning._Tests._extremes(None, images, sure, [(0, 0), (1, 1)])
    assert first.text == "Wrong with the highest confidence: none."
    assert second.alt == "Least confident"


def test_the_training_time_of_a_comparison_counts_what_is_known(tmp_path):
    assert seconds_of(tmp_path) == 0
    (tmp_path / "costs.csv").write_text("name,seconds\na,10.5\nb,\nc,2\n")
    assert seconds_of(tmp_path) == 12.5
