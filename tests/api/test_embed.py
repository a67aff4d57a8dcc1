"""``embed`` and ``predict`` are the plain Python path on every image, whatever breaks or kills them in between."""

import csv
import json
import random
import shutil
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import mapet
from forms import MODEL, as_finetuning, in_all_forms
from mapet.api import journal
from mapet.api.embed import embed
from mapet.api.predict import predict
from mapet.config.recipe import Recipe
from mapet.data.augment import normalize
from mapet.data.image import read_image
from mapet.data.policy import Centre
from mapet.engine.checkpoint import Checkpoint, write_file
from mapet.evals.features import features
from mapet.interop.export_folder import weights
from mapet.utils.errors import MapetError
from mapet.utils.view import CenterCropResize
from processes import Forked, stopping

VIEW = CenterCropResize((16, 16))
BROKEN = {"across/05.png": b"", "along/00.png": b"nothing", "along/23.png": None}
NAMES = ["cats", "dogs", "höhlen, große", "x"]


@pytest.fixture(scope="module")
def desk(images, tmp_path_factory):
    """Images, three of them broken in different ways, an encoder in all forms, and a classifier."""
    root = tmp_path_factory.mktemp("use")
    shutil.copytree(images, root / "images")
    for name, content in BROKEN.items():
        path = root / "images" / name
        path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    in_all_forms(Recipe(model=MODEL), root)
    as_finetuning(root / "classifier", NAMES)
    return root


@pytest.fixture(scope="module")
def readable(desk):
    ids = sorted(path.relative_to(desk / "images").as_posix() for path in (desk / "images").rglob("*.png"))
    return [image_id for image_id in ids if image_id not in BROKEN]


def plain(path, crop=VIEW):
    """(1, 3, 16, 16), by hand."""
    return normalize(torch.from_numpy(np.array(crop(read_image(path)))).permute(2, 0, 1)[None] / 255)


@pytest.mark.parametrize("form", ["run", "export", "published.pth.tar", "classifier"])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_features_are_the_encoder_s_on_every_image(desk, readable, form, batch_size):
    found = embed(desk / form, desk / "images", batch_size=batch_size)
    encoder = mapet.load_encoder(desk / form)
    batches = [(plain(desk / "images" / image_id), torch.tensor([-1])) for image_id in readable]
    expected = features(encoder, batches)[0]
    assert found.image_ids == readable
    assert found.unreadable.keys() == BROKEN.keys()
    torch.testing.assert_close(torch.from_numpy(found.features), expected, atol=1e-5, rtol=1e-5)
    if batch_size == 1:
        assert torch.equal(torch.from_numpy(found.features), expected)


@pytest.mark.parametrize("pool", ["avg", "token", "avg+token", "patches"])
def test_pools_are_those_of_the_evaluations(desk, readable, pool):
    found = embed(desk / "run", [desk / "images" / image_id for image_id in readable], pool=pool)
    batch = torch.cat([plain(desk / "images" / image_id) for image_id in readable])
    expected = features(mapet.load_encoder(desk / "run"), [(batch, torch.zeros(len(batch)))], pool=pool)[0].float()
    torch.testing.assert_close(torch.from_numpy(found.features), expected, atol=2e-3, rtol=1e-3)  # patches: float16
    unit = embed(desk / "run", [desk / "images" / image_id for image_id in readable], pool=pool, normalize=True)
    expected = torch.nn.functional.normalize(torch.from_numpy(found.features), dim=-1)
    torch.testing.assert_close(torch.from_numpy(unit.features), expected)


@pytest.mark.parametrize("form", ["run", "classifier"])
def test_layers_are_those_of_the_evaluations(desk, readable, form):
    batch = torch.cat([plain(desk / "images" / image_id) for image_id in readable])
    every = features(mapet.load_encoder(desk / form), [(batch, torch.zeros(len(batch)))], pool="layers")[0].float()
    for layer in (1, 2):
        token, avg = every[:, layer - 1].chunk(2, dim=1)
        found = embed(desk / form, desk / "images", pool="avg+token", layer=layer, batch_size=len(readable) + 3)
        torch.testing.assert_close(torch.from_numpy(found.features), torch.cat([avg, token], 1), atol=2e-3, rtol=1e-3)


def expected_predictions(desk, readable):
    """Probabilities (N, classes), one image at a time."""
    classifier = mapet.load_classifier(desk / "classifier")
    assert (classifier.classes, classifier.crop_pct) == (tuple(NAMES), 0.75)
    crop = Centre(0.75)(0, [0])[0]
    with torch.no_grad():
        logits = [classifier(plain(desk / "images" / image_id, lambda i: crop(i, VIEW))) for image_id in readable]
    return torch.cat(logits).softmax(1)


def assert_predicted(found, expected, readable, atol=1e-5):
    assert [one.image_id for one in found] == readable
    for one, row in zip(found, expected, strict=True):
        assert sorted(one.probabilities, reverse=True) == list(one.probabilities)
        same = torch.stack([row[NAMES.index(name)] for name in one.classes])
        torch.testing.assert_close(torch.tensor(one.probabilities), same, atol=atol, rtol=0)
        assert one.probabilities[0] >= float(row.max()) - 1e-5


def test_predictions_are_the_classifier_s_on_every_image(desk, readable, tmp_path):
    expected = expected_predictions(desk, readable)
    assert len(set(expected.argmax(1).tolist())) > 1, "or the test would not see a mixed up name"
    assert_predicted(predict(desk / "classifier", desk / "images", batch_size=1), expected, readable, atol=0)
    for out in (None, tmp_path / "out.csv"):
        for k in (1, 3, 9):
            found = predict(desk / "classifier", desk / "images", out, top_k=k, overwrite=True, workers=2 * (k == 3))
            assert_predicted(found, expected, readable)
            assert len(found[0].classes) == min(k, 4)
            assert found.unreadable.keys() == BROKEN.keys()
            assert len(found) == len(readable)
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == sorted([*readable, *BROKEN])
    assert {row["image"]: row["unreadable"] for row in rows if row["unreadable"]} == found.unreadable
    assert rows[1]["class_4"] in NAMES


def test_images_in_memory_are_those_of_files(desk, readable):
    model, path = mapet.load_classifier(desk / "classifier"), desk / "images" / readable[3]
    array = np.asarray(Image.open(path))
    channels_first = torch.from_numpy(array.copy()).permute(2, 0, 1)
    expected = predict(desk / "classifier", path)[0][1:]
    for image in (str(path), Image.open(path), array, channels_first, channels_first / 255):
        for given in (image, [image]):
            assert predict(model, given)[0][1:] == expected
    batch = torch.stack([channels_first] * 3) / 255
    assert [one.image_id for one in predict(model, batch)] == ["0", "1", "2"]


def test_an_export_knows_crop_and_names(desk, readable, tmp_path):
    mapet.export(desk / "classifier", tmp_path / "export")
    expected = expected_predictions(desk, readable)
    assert_predicted(predict(tmp_path / "export", desk / "images"), expected, readable)
    del (config := json.loads((tmp_path / "export/config.json").read_text()))["label_names"]
    (tmp_path / "export/config.json").write_text(json.dumps(config))
    path = tmp_path / "export/model.safetensors"
    path.write_bytes(weights(load_file(path), config))  # with the fingerprint of these settings
    assert set(predict(tmp_path / "export", desk / "images" / readable[0])[0].classes) == {"0", "1", "2", "3"}


def test_names_of_an_older_run_are_those_of_its_images(images, tmp_path, caplog):
    as_finetuning(tmp_path / "run", ["?", "?"], data=images)
    about = json.loads((tmp_path / "run/classifier.json").read_text())
    (tmp_path / "run/classifier.json").write_text(json.dumps({**about, "classes": []}))
    last = tmp_path / "run/checkpoints/last.safetensors"
    write_file(last, 0, Checkpoint(last).read_all()).replace(last)  # which does not say the names either
    with caplog.at_level("INFO", "mapet"):
        found = predict(tmp_path / "run", images / "along/00.png")
    assert found.classes == ("across", "along")
    assert f"the names are those of {images}" in caplog.text


EMBED = {"pool": "avg+token", "batch_size": 5}
WORK = {  # without pyarrow, no .parquet
    "features.npz": lambda desk, out, **more: embed(desk / "run", desk / "images", out, **EMBED, **more),
    "features.parquet": lambda desk, out, **more: embed(desk / "run", desk / "images", out, **EMBED, **more),
    "out.csv": lambda desk, out, **more: predict(desk / "classifier", desk / "images", out, batch_size=5, **more),
}
if find_spec("pyarrow") is None:
    del WORK["features.parquet"]


@pytest.fixture(scope="module")
def whole(desk):
    """The content of each file, written without interruption."""
    for name, work in WORK.items():
        work(desk, desk / name)
    return {name: (desk / name).read_bytes() for name in WORK}


@pytest.mark.parametrize("name", WORK)
def test_a_file_holds_what_is_in_memory(desk, whole, name):
    """With unreadable images in the first, a middle and the last batch."""
    in_memory = WORK[name](desk, None)
    if name == "out.csv":
        again = predict(desk / "classifier", desk / "images", desk / "again.csv", batch_size=5)
        assert [one[:2] for one in again] == [one[:2] for one in in_memory]
        numbers = (np.float32([one.probabilities for one in found]) for found in (again, in_memory))
        assert np.array_equal(*numbers)
        assert again.unreadable == in_memory.unreadable
        return
    found = mapet.Embeddings.open(desk / name)
    assert (found.image_ids, found.unreadable) == (in_memory.image_ids, in_memory.unreadable)
    assert np.array_equal(found.features, in_memory.features)
    assert found.about == {**in_memory.about, "format": found.about["format"]}


@pytest.mark.parametrize(
    ("name", "number"), [("features.npz", 1), ("features.npz", 8), ("out.csv", 6), ("out.csv", 19)]
)
def test_killed_at_any_moment_it_continues(desk, whole, tmp_path, name, number):
    """Also with other numbers of workers; before the last rename the file is whole already."""
    out = tmp_path / name
    process = Forked(tmp_path, work=stopping(journal, "write_from", number, partial(WORK[name], desk, out)))
    process.wait_for_stop()
    with pytest.raises(MapetError, match=r"^Another process is writing into .*\.part"):
        WORK[name](desk, out)
    process.kill()
    assert process.wait()[0] == -9
    assert not out.exists()
    WORK[name](desk, out, workers=2)
    assert out.read_bytes() == whole[name]
    assert {path.name for path in tmp_path.iterdir()} == {name, "0.out", "0.err"}


def test_killed_once_the_file_is_in_its_place(desk, whole, tmp_path):
    out = tmp_path / "features.npz"
    process = Forked(tmp_path, work=stopping(journal, "discard", 1, partial(WORK["features.npz"], desk, out)))
    process.wait_for_stop()
    process.kill()
    process.wait()
    assert out.read_bytes() == whole["features.npz"]
    WORK["features.npz"](desk, out, overwrite=True)
    assert out.read_bytes() == whole["features.npz"]
    assert not out.with_name("features.npz.part").exists()


@pytest.mark.parametrize("name", WORK)
def test_cut_off_anywhere_it_continues(desk, whole, tmp_path, name, monkeypatch):
    """Whatever part of the two files reached the disk before a crash."""
    out, chance = tmp_path / name, random.Random(0)
    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "finish", lambda self, write: None)
        patch.setattr(mapet.Embeddings, "open", lambda path: mapet.Embeddings({}, {}, list))
        WORK[name](desk, out)
    part = out.with_name(f"{name}.part")
    for _ in range(4):
        broken = shutil.copytree(part, tmp_path / "again" / part.name)
        for file in (broken / "lines.txt", broken / "rows.bin"):
            content = file.read_bytes()
            file.write_bytes(content[: chance.randrange(len(content))] + b"\0" * chance.randrange(9))
        WORK[name](desk, tmp_path / "again" / name)
        assert (tmp_path / "again" / name).read_bytes() == whole[name]
        shutil.rmtree(tmp_path / "again")


def test_an_image_that_is_repaired_in_between_is_read(desk, readable, tmp_path, images):
    shutil.copytree(desk / "images", tmp_path / "images")
    with pytest.raises(MapetError, match=r"more than the 5.00% allowed"):
        embed(desk / "run", tmp_path / "images", tmp_path / "f.npz", batch_size=5, max_bad_fraction=0.05)
    for name in BROKEN:
        shutil.copy(images / name, tmp_path / "images" / name)
    found = embed(desk / "run", tmp_path / "images", tmp_path / "f.npz", batch_size=5)
    assert (len(found), found.unreadable) == (48, {})
    assert (found.features == embed(desk / "run", images, batch_size=5).features).all()


def test_a_full_disk_is_one_line_and_the_work_is_kept(desk, whole, tmp_path, monkeypatch):
    plain_write = journal.write_from

    def full(path, start, content):
        if start > 1000:
            raise MapetError(f"{path} could not be written: the disk is full.")
        plain_write(path, start, content)

    with monkeypatch.context() as patch:
        patch.setattr(journal, "write_from", full)
        with pytest.raises(MapetError, match="disk is full"):
            WORK["features.npz"](desk, tmp_path / "features.npz")
    WORK["features.npz"](desk, tmp_path / "features.npz")
    assert (tmp_path / "features.npz").read_bytes() == whole["features.npz"]


def test_another_call_is_not_continued(desk, whole, tmp_path):
    out = tmp_path / "features.npz"
    shutil.copytree(desk / "images", tmp_path / "images")

    def begun():
        (tmp_path / "features.npz.part").mkdir(exist_ok=True)
        about = {"format": journal.FORMAT, "encoder": "other", "pool": "avg"}
        (tmp_path / "features.npz.part" / "about.json").write_text(json.dumps(about))

    begun()
    with pytest.raises(
        MapetError, match=r"features.npz was begun with encoder other, not \w+: begin anew with overwrite"
    ):
        WORK["features.npz"](desk, out)
    WORK["features.npz"](desk, out, overwrite=True)
    assert out.read_bytes() == whole["features.npz"]
    begun()
    (tmp_path / "features.npz.part" / "mine.txt").write_text("mine")
    with pytest.raises(MapetError, match="holds files that mapet did not write"):
        WORK["features.npz"](desk, out, overwrite=True)
    assert (tmp_path / "features.npz.part" / "mine.txt").read_text() == "mine"
    assert out.read_bytes() == whole["features.npz"]


@pytest.mark.parametrize("name", ["features.npz", "out.csv"])
def test_only_what_we_wrote_is_replaced(desk, whole, tmp_path, name):
    out = tmp_path / name
    out.write_text("image,mine\n")
    for more in ({}, {"overwrite": True}):
        with pytest.raises(MapetError, match="exists, and mapet did not write it, so it is not replaced"):
            WORK[name](desk, out, **more)
    assert out.read_text() == "image,mine\n"
    out.write_bytes(whole[name])
    with pytest.raises(MapetError, match="exists: give another out, or replace it with overwrite"):
        WORK[name](desk, out)
    WORK[name](desk, out, overwrite=True)
    assert out.read_bytes() == whole[name]


def test_what_does_not_fit_is_one_line(desk, tmp_path):
    with pytest.raises(
        MapetError, match=r"has no classifier's head: fine-tune it first \(mapet finetune .*/run --data"
    ):
        predict(desk / "run", desk / "images")
    with pytest.raises(MapetError, match=r"^This Encoder has no classifier's head"):
        predict(mapet.load_encoder(desk / "run"), desk / "images")
    with pytest.raises(MapetError, match=r"^layer must be <= 2, the number of FROM's blocks, got 3"):
        embed(desk / "run", desk / "images", layer=3)
    with pytest.raises(
        MapetError, match=r"^No image can be read: 1 of 1 images are unreadable: .*05\.png \(zero bytes"
    ):
        embed(desk / "run", desk / "images/across/05.png")
    with pytest.raises(MapetError, match=r"^A file of features ends in \.npz or \.parquet"):
        embed(desk / "run", desk / "images", tmp_path / "features.csv")
    assert not list(tmp_path.iterdir())


def test_a_pack_is_the_folder(desk, images, tmp_path):
    mapet.pack(images, tmp_path / "pack", size=16, workers=0)
    folder, pack = (embed(desk / "run", data) for data in (images, tmp_path / "pack"))
    assert folder.image_ids == pack.image_ids
    assert (folder.features == pack.features).all()
    with pytest.raises(MapetError, match="pack"):
        predict(desk / "classifier", tmp_path / "pack", tmp_path / "found.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]
    assert len(predict(desk / "classifier", tmp_path / "pack", crop_pct=1.0)) == 48
