"""Segmentation through the command line: exact resume, what is learnt, what comes out, and what is refused."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

import mapet
from mapet.cli import main
from mapet.config.file import read, save
from mapet.config.recipes.segmentation import catalogue
from mapet.config.segmentation import SegmentRecipe
from mapet.engine.optim import Schedule
from mapet.engine.run import Run, load_checkpoint
from processes import Forked, wait_for_step

NETWORK = ["--model", "custom", "--embed-dim", "16", "--depth", "2", "--num-heads", "2"]
NETWORK += ["--image-size", "16", "--patch-size", "4", "--channels", "8", "--auxiliary-channels", "4"]
SHORT = ["--batch-size", "4", "--epochs", "5", "--warmup-epochs", "1", "--lr", "2e-3", "--ema-decay", "0.9"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Bright squares (label 2) on dark ground (label 1), sizes mixed; the first column is ignored."""
    root, chance = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    for split, count in {"training": 16, "validation": 5}.items():
        for part in ("images", "annotations"):
            (root / part / split).mkdir(parents=True)
        for i in range(count):
            mask = np.ones((16 + i % 3 * 8, 24), np.uint8)
            top, left = chance.integers(0, 8, 2)
            mask[top : top + 10, left : left + 10] = 2
            pixels = np.where(mask == 2, 200, 50)[..., None] + chance.integers(-30, 30, (*mask.shape, 3))
            mask[:, 0] = 0
            Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / split / f"{i}.png")
            Image.fromarray(mask).save(root / "annotations" / split / f"{i}.png")
    (root / "classes.txt").write_text("ground\nsquare\n")
    return root


def arguments(pairs, out, *more):
    return ["segment", "random", "--data", str(pairs), "--out", str(out), *NETWORK, *SHORT, *more]


@pytest.fixture(scope="module")
def whole(pairs, tmp_path_factory):
    """An uninterrupted run of 20 steps."""
    folder = tmp_path_factory.mktemp("segmented") / "whole"
    assert main(arguments(pairs, folder)) == 0
    return folder


def scores(folder):
    return json.loads((folder / "scores.json").read_text())


def assert_equal(one, other):
    (step, ours), (theirs_step, theirs) = load_checkpoint(Run(one).last), load_checkpoint(Run(other).last)
    assert step == theirs_step == 20
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert Run(one).metrics.read_bytes() == Run(other).metrics.read_bytes()
    ours, theirs = ({**scores(folder)[-1], "data": None} for folder in (one, other))
    assert ours == theirs


def test_killed_and_resumed_with_workers_is_uninterrupted_without(pairs, whole, tmp_path):
    out = tmp_path / "killed"
    process = Forked(tmp_path, *arguments(pairs, out, "--workers", "2"))
    wait_for_step(out, 6, process)
    process.kill()
    process.wait()
    assert main(["segment", "--resume", str(out)]) == 0
    assert_equal(whole, out)


def test_testing_on_the_way_changes_nothing_and_overwriting_begins_anew(pairs, whole, tmp_path, capsys):
    out = tmp_path / "tested"
    assert main(arguments(pairs, out, "--evaluate-every", "2")) == 0
    assert_equal(whole, out)
    assert [(entry["epoch"], entry["step"]) for entry in scores(out)] == [(2, 8), (4, 16), (5, 20)]
    said = capsys.readouterr().out
    assert said.count("protocol  segmentation, UPerNet of 8 channels, training from random, 5 epochs") == 3
    assert "poly (power 1) to 0.00e+00 at step 20" in said
    assert main(arguments(pairs, out)) == 2
    assert main(arguments(pairs, out, "--overwrite")) == 0
    assert_equal(whole, out)


def test_squares_are_learnt_and_the_model_is_loaded(pairs, tmp_path):
    out = tmp_path / "learnt"
    plain = ["--epochs", "30", "--lr", "5e-3", "--layer-decay", "1", "--drop-path", "0", "--ema-decay", "None"]
    assert main(arguments(pairs, out, *plain)) == 0
    rows = list(csv.DictReader(Run(out).metrics.open()))
    assert float(rows[-1]["loss"]) < 0.6 * float(rows[0]["loss"])
    found = scores(out)[-1]
    assert found["mIoU"]["value"] > 0.6
    both = [found[f"IoU {name}"]["value"] for name in ("ground", "square")]
    assert found["mIoU"]["value"] == pytest.approx(np.mean(both))
    assert found["mIoU"]["count"] == 5
    model = mapet.load_segmenter(out)
    assert model.classes == ("ground", "square")
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 20, 31)).shape == (1, 2, 20, 31)


def test_a_pre_trained_encoder_is_gone_on_from(pairs, images, tmp_path):
    from mapet.build.segment import segmenter_over
    from mapet.method.encoder import Encoder

    encoder = Encoder(16, 4, embed_dim=16, depth=2, num_heads=2, global_pool="token")
    model = segmenter_over(encoder, SegmentRecipe(backbone={"image_size": 24}), 3)
    assert model.grid == (6, 6)
    for name, tensor in encoder.blocks.state_dict().items():
        assert torch.equal(model.blocks.state_dict()[name], tensor)


def test_the_wrong_verb_names_the_right_one(whole, pairs, tmp_path, capsys):
    assert main(["finetune", "--resume", str(whole)]) == 2
    assert "holds a segmentation, not a fine-tuning: run mapet segment --resume" in capsys.readouterr().err
    assert main(["knn", str(whole), "--data", str(pairs)]) == 2
    assert "holds a segmentation model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("how", "line"),
    [("size", "is 5 × 4 pixels, and its image"), ("label", "has the label 9"), ("pairs", "has no images")],
)
def test_wrong_sets_are_one_line(pairs, tmp_path, capsys, how, line):
    import shutil

    root = shutil.copytree(pairs, tmp_path / "wrong")
    mask = root / "annotations" / "training" / "0.png"
    if how == "size":
        Image.new("L", (5, 4)).save(mask)
    elif how == "label":
        labels = np.array(Image.open(mask))
        labels[3, 3] = 9
        Image.fromarray(labels).save(mask)
    else:
        for path in (root / "images" / "training").iterdir():
            path.unlink()
    for words in (arguments(root, tmp_path / "out"), ["segment-probe", str(tmp_path), "--data", str(root)]):
        assert main(words) == 2
        said = capsys.readouterr().err
        if words[0] == "segment":
            assert line in said
            assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_set_of_any_folders_is_trained_on_tested_and_resumed(pairs, whole, tmp_path):
    parts = {split: f"{{images: images/{split}, masks: annotations/{split}}}" for split in ("training", "validation")}
    (pairs / "set.yaml").write_text(
        f"train: {parts['training']}\ntest: {parts['validation']}\nclass_file: classes.txt\n"
    )
    out = tmp_path / "out"
    process = Forked(tmp_path, *arguments(pairs / "set.yaml", out))
    wait_for_step(out, 6, process)
    process.kill()
    process.wait()
    moved = tmp_path / "moved.yaml"
    moved.write_text((pairs / "set.yaml").read_text().replace("images: ", f"images: {pairs}/").replace(
        "masks: ", f"masks: {pairs}/").replace("classes.txt", f"{pairs}/classes.txt"))  # fmt: skip
    assert main(["segment", "--resume", str(out), "--data", str(moved)]) == 0
    assert_equal(whole, out)


def test_later_wrong_masks_are_listed_and_too_many_stop_the_run(pairs, tmp_path, capsys):
    import shutil

    root = shutil.copytree(pairs, tmp_path / "some")
    for i in range(100, 120):
        shutil.copy(root / "images" / "training" / "0.png", root / "images" / "training" / f"{i}.png")
        shutil.copy(root / "annotations" / "training" / "0.png", root / "annotations" / "training" / f"{i}.png")
    Image.new("L", (5, 4)).save(root / "annotations" / "training" / "101.png")
    assert main(arguments(root, tmp_path / "out")) == 2
    assert "101.png is 5 × 4 pixels" in capsys.readouterr().err
    assert main(arguments(root, tmp_path / "other", "--max-bad-fraction", "0.1", "--epochs", "1")) == 0
    assert "101.png" in (tmp_path / "other" / "unreadable-images.txt").read_text()


@pytest.mark.parametrize("name", catalogue())
def test_every_named_segmentation_survives_yaml_and_has_the_published_steps(name, tmp_path):
    t = catalogue()[name]()
    save(t, tmp_path / "recipe.yaml")
    assert read(tmp_path / "recipe.yaml", SegmentRecipe) == t
    assert (catalogue()[name].__doc__ or "").strip()
    per_epoch = 20_210 // 16
    assert round(t.optimization.epochs * per_epoch) == 160_000
    assert round(t.optimization.warmup_epochs * per_epoch) == 1_500


def test_poly_decays_linearly_to_its_floor():
    schedule = Schedule(peak=1.0, floor=0.2, start=0.0, warmup=10, total=111, power=1.0)
    assert [schedule(step) for step in (0, 5, 10, 110)] == pytest.approx([0, 0.5, 1, 0.2])
    assert schedule(60) == pytest.approx(0.6)
    square = Schedule(peak=1.0, floor=0.0, start=0.0, warmup=0, total=101, power=2.0)
    assert square(50) == pytest.approx(0.25)
