"""Masks of images without labels: those of the test, of every source, whole after a kill, and what is refused."""

import gc
import json
import shutil
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

import mapet
from mapet.api.check import check
from mapet.build.segmentation_set import both_splits
from mapet.cli import main
from mapet.evals import segmentation
from mapet.evals.iou import iou_scores, overlap
from mapet.evals.upernet import sliding_logits
from mapet.utils.errors import MapetError
from processes import Forked

NETWORK = {"model": "custom", "embed_dim": 16, "depth": 2, "num_heads": 2, "image_size": 16, "patch_size": 4}
NETWORK |= {"channels": 8, "auxiliary_channels": 4, "batch_size": 4, "epochs": 6, "warmup_epochs": 1, "lr": 3e-3}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A set of bright squares on dark ground, in several sizes, and a model trained on it."""
    root, chance = tmp_path_factory.mktemp("masks"), np.random.default_rng(0)
    for split, count in {"training": 12, "validation": 5}.items():
        for i in range(count):
            mask = np.ones((16 + i % 3 * 8, 24 - i % 2 * 8), np.uint8)
            mask[4 : 12 + i % 3, 3 : 9 + i % 4] = 2
            pixels = np.where(mask == 2, 200, 50)[..., None] + chance.integers(-30, 30, (*mask.shape, 3))
            for part, values in (("images", pixels), ("annotations", mask)):
                file = root / "set" / part / split / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values.astype(np.uint8)).save(file)
    (root / "set" / "classes.txt").write_text("ground\nsquare\n")
    mapet.segment("random", root / "set", root / "model", accelerator="cpu", **NETWORK)
    return root


def validation(root):
    return root / "set" / "images" / "validation"


def test_the_files_score_as_the_test_of_the_training(root, tmp_path):
    found = mapet.masks(root / "model", validation(root), tmp_path / "out")
    counts = []
    for i, one in enumerate(found):
        with Image.open(root / "set" / "annotations" / "validation" / one.image_id) as truth:
            expected = torch.from_numpy(np.asarray(truth).astype(np.int64) - 1)
        with Image.open(tmp_path / "out" / f"{i}.png") as written:
            assert written.mode == "P"
            labels = np.asarray(written).astype(np.int64) - 1
        assert np.array_equal(labels, one.labels)
        counts.append(overlap(torch.from_numpy(labels), expected, 2))
    recorded = json.loads((root / "model" / "scores.json").read_text())[-1]
    ours = iou_scores(torch.stack(counts), found.classes)
    assert ours["mIoU"].value == recorded["mIoU"]["value"] > 0.6
    assert len(found) == 5
    assert (tmp_path / "out" / "classes.txt").read_text() == "ground\nsquare\n"


def test_masks_are_a_set_that_can_be_trained_on(root, tmp_path):
    found = mapet.masks(root / "model", validation(root), tmp_path / "out")
    (tmp_path / "set.yaml").write_text(
        f"train: {{images: {validation(root)}, masks: out}}\nclass_file: out/classes.txt\ntest_share: 0.4\n"
    )
    train, test = both_splits(tmp_path / "set.yaml")
    assert (len(train), len(test), train.classes) == (3, 2, found.classes)
    for split in (train, test):
        for i, (image, _) in enumerate(split.pairs):
            (expected,) = [one.labels for one in found if one.image_id == image.name]
            assert np.array_equal(split.pair(i)[1], expected)


def test_every_source_and_model_gives_the_same_masks(root, tmp_path):
    folder = mapet.export(root / "model", tmp_path / "export", to="torch")
    paths = sorted(validation(root).iterdir())
    opened = [Image.open(path).convert("RGB") for path in paths]
    expected = [one.labels for one in mapet.masks(root / "model", validation(root))]
    for model, images in (
        (folder, validation(root)),
        (mapet.load_segmenter(root / "model"), paths),
        (root / "model", opened),
        (root / "model", [np.asarray(image) for image in opened]),
    ):
        found = mapet.masks(model, images)
        assert [one.labels.shape for one in found] == [(image.height, image.width) for image in opened]
        assert all(np.array_equal(one.labels, there) for one, there in zip(found, expected, strict=True))
    given = mapet.masks(root / "model", paths, tmp_path / "given")
    assert sorted(path.name for path in (tmp_path / "given").glob("*.png")) == [path.name for path in paths]
    assert np.array_equal(given[1].labels, expected[1])


@pytest.mark.parametrize("part", [1, 40, 10**9])
def test_classes_resized_in_parts_are_those_resized_at_once(root, part, monkeypatch):
    class Colours(torch.nn.Module):
        num_classes, img_size = 7, (8, 8)

        def forward(self, images):
            return torch.randn(len(images), 7, *images.shape[-2:], generator=torch.Generator().manual_seed(3))

    monkeypatch.setattr(segmentation, "RESIZED", part)
    model, image = Colours(), torch.randn(3, 8, 8)
    whole = interpolate(sliding_logits(model, image[None]), (13, 9), mode="bilinear", align_corners=False)
    assert torch.equal(segmentation.segmented(model, image, (13, 9)), whole[0].argmax(dim=0))


def test_a_killed_call_is_continued_and_unreadable_images_are_told(root, tmp_path, capsys):
    images = tmp_path / "images"
    for i in range(300):
        (images / f"{i % 3}").mkdir(parents=True, exist_ok=True)
        (images / f"{i % 3}" / f"{i:03}.png").write_bytes((validation(root) / f"{i % 5}.png").read_bytes())
    (images / "0" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    whole = tmp_path / "whole"
    assert main(["masks", str(root / "model"), str(images), "--out", str(whole)]) == 0
    said = capsys.readouterr()
    assert "300 masks in" in said.out
    assert "0/broken.png" in said.out
    out = tmp_path / "killed"
    process = Forked(tmp_path, "masks", str(root / "model"), str(images), "--out", str(out))
    while len(list(out.rglob("*.png"))) < 20:
        assert process.poll() is None
    process.kill()
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert 20 <= len(before) < 300
    assert main(["masks", str(root / "model"), str(images), "--out", str(out)]) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    contents = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (whole, out)
    ]
    assert contents[0] == contents[1]


def test_check_reads_every_mask(root, tmp_path):
    out = tmp_path / "out"
    mapet.masks(root / "model", validation(root), out)
    assert check(out) == {"masks.json": ""}
    file = out / "2.png"
    whole = file.read_bytes()
    for content, line in (
        (whole[: len(whole) // 2], "2.png is damaged"),
        (whole[:60] + b"xx" + whole[62:], "2.png is damaged"),
    ):
        file.write_bytes(content)
        assert line in check(out)["masks.json"]
    Image.fromarray(np.full((4, 4), 3, np.uint8)).save(file)
    assert "labels other than 1 … 2" in check(out)["masks.json"]
    file.unlink()
    mapet.masks(root / "model", validation(root), out)
    assert file.read_bytes() == whole
    (out / "classes.txt").write_text("ground\nsky\n")
    assert "name other classes" in check(out)["masks.json"]


def test_check_reads_the_export_in_a_run(root):
    folder = mapet.export(root / "model", to="torch")
    assert check(root / "model")["export/segmenter/model.safetensors"] == ""
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + b"12345678")
    assert check(root / "model")["export/segmenter/model.safetensors"]


def test_a_run_without_the_shape_of_its_model_is_named(root, tmp_path):
    run = shutil.copytree(root / "model", tmp_path / "run")
    (run / "segmenter.json").unlink()
    assert "it has no segmenter.json" in check(run)["recipe.yaml"]
    with pytest.raises(MapetError, match=r"run is damaged: it has no segmenter.json. Restore that"):
        mapet.load_encoder(run)


def test_without_a_folder_shares_are_printed(root, capsys):
    assert main(["masks", str(root / "model"), str(validation(root) / "0.png")]) == 0
    line = capsys.readouterr().out.strip()
    (one,) = mapet.masks(root / "model", validation(root) / "0.png")
    assert f"ground {100 * (one.labels == 0).mean():.1f} %" in line
    assert main(["masks", str(root / "model"), str(validation(root) / "0.png"), "--json", "--quiet"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert sum(*[shares.values() for shares in result.values()]) == pytest.approx(1)


def test_what_is_refused_is_one_line_and_nothing_is_overwritten(root, tmp_path):
    full, other = tmp_path / "full", tmp_path / "other"
    full.mkdir()
    (full / "0.png").write_text("mine")
    twins = tmp_path / "twins"
    twins.mkdir()
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (8, 8)).save(twins / name)
    mapet.masks(root / "model", validation(root), other)
    for model, images, out, line in (
        (root / "model", validation(root), full, "is not empty (it holds 0.png)"),
        (root / "model", twins, tmp_path / "x", "a.jpg and a.png would have the same mask a.png"),
        (root / "model", twins / "a.png", other, "holds masks of another model or of other images"),
        (root / "model", twins, twins, "is out"),
        (root / "model", twins, twins / "masks", "where it would be among images"),
        (root / "set", twins, tmp_path / "x", "holds no run"),
        (torch.nn.Linear(1, 1), twins, tmp_path / "x", "This Linear makes no masks"),
        (root / "model", tmp_path / "none", tmp_path / "x", "does not exist"),
    ):
        with pytest.raises(MapetError) as error:
            mapet.masks(model, images, out)
        assert line in str(error.value)
        assert "\n" not in str(error.value)
    assert (full / "0.png").read_text() == "mine"
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(MapetError, match="No image can be read"):
        mapet.masks(root / "model", broken)


def test_memory_does_not_hold_images(root, tmp_path):
    """A dataset is read one image at a time: each is gone before the next one is read."""
    seen = []

    class Counted:
        name, classes = "counted", ()

        def __len__(self):
            return 30

        def image_id(self, i):
            return f"{i}.png"

        def label(self, i):
            return -1

        def read(self, i):
            gc.collect()
            assert sum(one() is not None for one in seen) <= 1
            image = Image.new("RGB", (16, 16), (i, i, i))
            seen.append(weakref.ref(image))
            return image

    assert len(mapet.masks(root / "model", Counted(), tmp_path / "out")) == 30


def test_a_stride_that_leaves_gaps_is_refused(root, tmp_path):
    for work in (
        lambda: mapet.masks(root / "model", validation(root), tmp_path / "out", stride=17),
        lambda: mapet.segment("random", root / "set", tmp_path / "run", accelerator="cpu", stride=17, **NETWORK),
    ):
        with pytest.raises(MapetError, match="stride must be <= 16, the side of a window, got 17"):
            work()
    assert not list(tmp_path.iterdir())
