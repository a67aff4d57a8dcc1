"""``segment_probe`` and the segmentation probes of a comparison: what is written, equal scores, what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

import mapet
from forms import MODEL, in_all_forms
from mapet.config.recipe import Recipe
from mapet.data.segmentation import SPLITS
from mapet.utils.errors import MapetError

TINY = {"model": "custom", "embed_dim": 16, "depth": 2, "num_heads": 2, "image_size": 16, "patch_size": 4}
STEPS = {"epochs": 1, "batch_size": 4, "warmup_epochs": 0, "accelerator": "cpu"}
KMEANS = {"teacher": "pixels", "vocab_size": 8, "iterations": 2, "restarts": 1}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Images of which a random side is red and has the label 2; not square."""
    root, chance = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    for split, count in {"training": 8, "validation": 4}.items():
        for part in ("images", "annotations"):
            (root / part / split).mkdir(parents=True)
        for i in range(count):
            pixels, mask = np.zeros((16, 32, 3), np.uint8), np.ones((16, 32), np.uint8)
            edge = int(chance.integers(2, 12))
            pixels[:, :edge, 0], mask[:, :edge] = 255, 2
            Image.fromarray(pixels).save(root / "images" / split / f"{i}.png")
            Image.fromarray(mask).save(root / "annotations" / split / f"{i}.png")
    (root / "classes.txt").write_text("dark\nred\n")
    return root


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    return in_all_forms(Recipe(model=MODEL), tmp_path_factory.mktemp("forms"))


def test_all_forms_of_an_encoder_have_the_same_scores_which_are_written(forms, pairs, tmp_path):
    found = [
        mapet.segment_probe(source, pairs, out=tmp_path / f"{name}.json", num_heads=heads, accelerator="cpu")
        for name, source in forms.items()
        for heads in [2 if name == "published.pth.tar" else None]
    ]
    assert found[0].keys() == {"guess", "segment-linear", "segment-knn"}
    for other in found[1:]:
        assert other["segment-linear"]["mIoU"].value == pytest.approx(
            found[0]["segment-linear"]["mIoU"].value, abs=0.01
        )
    assert found[0]["guess"]["IoU red"].value == 0
    assert found[0]["guess"]["mIoU"].value == pytest.approx(found[0]["guess"]["accuracy"].value / 2)
    linear, knn = json.loads((tmp_path / "run.json").read_text())
    assert linear["mIoU"]["value"] == found[0]["segment-linear"]["mIoU"].value
    assert knn["protocol"].startswith("segmentation, k-NN of patches, k = 20")
    assert "IoU red" in knn


def test_a_larger_image_size_and_fewer_images_are_another_measurement(forms, pairs, tmp_path):
    settings = {"out": tmp_path / "x.json", "accelerator": "cpu", "protocols": "segment-knn"}
    one, same, larger, fewer = (
        mapet.segment_probe(forms["run"], pairs, **settings, **changes)["segment-knn"]["mIoU"].value
        for changes in ({}, {}, {"image_size": 32}, {"max_images": 2})
    )
    assert one == same
    assert len({one, larger, fewer}) > 1


def test_folders_that_a_file_names_give_the_scores_of_the_same_set(forms, pairs, tmp_path):
    parts = [f"images: {pairs}/images/{split}, masks: {pairs}/annotations/{split}" for split in SPLITS.values()]
    names = (pairs / "classes.txt").read_text().split()
    text = f"train: {{{parts[0]}}}\ntest: {{{parts[1]}}}\nclasses: [{', '.join(names)}]\n"
    (tmp_path / "set.yaml").write_text(text)
    settings = {"out": tmp_path / "x.json", "accelerator": "cpu", "protocols": "segment-knn"}
    one, other = (mapet.segment_probe(forms["run"], data, **settings) for data in (pairs, tmp_path / "set.yaml"))
    assert one == other


def test_a_comparison_measures_by_segmentation(pairs, tmp_path):
    settings = {"objectives": "mim", "baselines": "random", "seeds": 1, **KMEANS}
    compared = mapet.compare(
        data=pairs / "images" / "training", out=tmp_path / "out", evaluate="segment-knn", segment_data=pairs,
        **settings, **TINY, **STEPS,
    )  # fmt: skip
    assert compared is not None
    table = (tmp_path / "out" / "results.csv").read_text()
    assert "mIoU" in table
    (trained,) = (tmp_path / "out" / "runs").glob("mim-*")
    expected = mapet.segment_probe(trained, pairs, "segment-knn", out=tmp_path / "x.json", accelerator="cpu")
    recorded = json.loads(next((tmp_path / "out" / "scores").glob("mim-*")).read_text())
    assert recorded["segment-knn"]["mIoU"]["value"] == expected["segment-knn"]["mIoU"].value


def test_what_is_refused_is_one_line(forms, pairs, tmp_path):
    run = forms["run"]
    for words, line in (
        ({"protocols": "segment-lines"}, 'no segmentation protocol "segment-lines". Did you mean "segment-linear"?'),
        ({"protocols": ""}, "protocols is empty"),
        ({"data": tmp_path}, "has no folder images/training"),
        ({"k": 0}, "k must be >= 1"),
    ):
        with pytest.raises(MapetError) as error:
            mapet.segment_probe(run, **{"data": pairs, **words})
        assert line in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(MapetError, match="need segment_data, a segmentation set"):
        mapet.compare(data=pairs, out=tmp_path / "none", evaluate="segment-knn", **TINY)
    with pytest.raises(MapetError, match=r"segment_data .* has no folder images/training"):
        mapet.compare(
            data=pairs / "images" / "training", out=tmp_path / "none", evaluate="segment-knn",
            segment_data=pairs / "images", **TINY, **KMEANS,
        )  # fmt: skip
    assert not (tmp_path / "none").exists()
