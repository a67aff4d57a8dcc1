"""Image and mask pairs, and sets composed of shapes over photographs."""

import os

import numpy as np
import pytest
from PIL import Image

from mapet.cli import main
from mapet.data.segmentation import open_segmentation
from mapet.data.shapes import compose_shapes
from mapet.utils.errors import MapetError

COLORS = {"cars": (255, 0, 0), "trees": (0, 255, 0), "fish": (0, 0, 255)}


@pytest.fixture
def material(tmp_path):
    """Shapes, each class in its colour, and black photographs."""
    for name, color in COLORS.items():
        (tmp_path / "shapes" / name / "deep").mkdir(parents=True)
        for i in range(4):
            pixels = np.zeros((20, 30, 4), np.uint8)
            pixels[4 : 12 + i, 5:25] = (*color, 255)
            Image.fromarray(pixels).save(tmp_path / "shapes" / name / "deep" / f"{i}.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "shapes" / "fish" / "no-alpha.png")
    (tmp_path / "photos").mkdir()
    for i in range(6):
        Image.new("RGB", (40, 50)).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path


def composed(material, name="out", **changes):
    sizes = {"classes": 3, "train": 12, "test": 4, "size": 32, **changes}
    return compose_shapes(material / "shapes", material / "photos", material / name, **sizes)


def test_every_label_is_where_its_class_is_seen(material):
    out, seen = composed(material), set()
    for split, count in {"train": 12, "test": 4}.items():
        found = open_segmentation(out, split)
        assert found.classes == ("background", "cars", "fish", "trees")
        assert len(found) == count
        for i in range(count):
            image, mask = found.read(i)
            pixels = np.asarray(image)
            for label, name in enumerate(found.classes, 1):
                color = np.array(COLORS.get(name, (0, 0, 0)))
                clear = (np.abs(pixels.astype(int) - color) <= 100).all(axis=2)  # edges are resampled
                assert clear[mask == label].all()
            seen |= set(np.unique(mask).tolist())
    assert seen == {1, 2, 3, 4}


def test_the_same_seed_gives_the_same_files_and_another_seed_others(material):
    def content(out):
        return [path.read_bytes() for path in sorted(out.rglob("*.png"))]

    first = content(composed(material))
    assert content(composed(material, "again")) == first
    assert content(composed(material, "other", seed=1)) != first


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"classes": 4}, "has 3 sub-folders with two or more images with a usable alpha channel, and classes is 4"),
        ({"size": 0}, "size must be >= 1, got 0"),
    ],
)
def test_what_cannot_be_composed_is_one_line(material, changes, line):
    with pytest.raises(MapetError, match=line):
        composed(material, **changes)
    assert not (material / "out").exists()


def test_files_that_are_there_stay(material):
    (material / "out").mkdir()
    (material / "out" / "mine").write_text("mine")
    with pytest.raises(MapetError):
        composed(material)
    assert [path.name for path in (material / "out").iterdir()] == ["mine"]


def damaged(out, how):
    mask = next(iter(sorted((out / "annotations/training").iterdir())))
    if how == "size":
        Image.new("L", (32, 31), 1).save(mask)
    elif how == "label":
        Image.new("L", (32, 32), 5).save(mask)
    elif how == "channels":
        Image.new("RGB", (32, 32)).save(mask)
    elif how == "broken":
        mask.write_bytes(b"no image")
    elif how == "mask":
        mask.unlink()
    elif how == "images":
        for path in (out / "images/training").iterdir():
            path.unlink()
    elif how == "names":
        (out / "classes.txt").write_text("\n")


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("size", "is 32 × 31 pixels, and its image 32 × 32"),
        ("label", "has the label 5, but the set has 4 classes"),
        ("channels", "must have one channel of class labels, got 3"),
        ("broken", "cannot be read"),
        ("mask", r"has no mask .*000000.png \(1 such images\)"),
        ("images", "has no pairs"),
        ("names", "has no class names"),
    ],
)
def test_wrong_sets_are_one_line(material, how, line):
    out = composed(material)
    damaged(out, how)
    with pytest.raises(MapetError, match=line) as caught:
        open_segmentation(out).read(0)
    assert "\n" not in str(caught.value)


def test_without_a_class_file_the_classes_are_those_of_ade20k(material):
    out = composed(material)
    (out / "classes.txt").unlink()
    assert len(open_segmentation(out).classes) == 150
    with pytest.raises(MapetError, match="has no folder images/training"):
        open_segmentation(material / "photos")


def test_the_command_and_the_function_write_the_same_set(material, capsys):
    import mapet

    words = ["shapes", str(material / "shapes"), str(material / "photos"), "--out", str(material / "one")]
    assert main([*words, "--classes", "2", "--train", "3", "--test", "2", "--size", "32"]) == 0
    assert "3 training and 2 validation images, 2 classes" in capsys.readouterr().out
    sizes = {"classes": 2, "train": 3, "test": 2, "size": 32}
    mapet.shapes(material / "shapes", material / "photos", material / "two", **sizes)
    one, two = ([p.read_bytes() for p in sorted((material / name).rglob("*.*"))] for name in ("one", "two"))
    assert one == two
    assert main([*words[:-1], str(material / "shapes" / "in")]) == 2


def test_a_broken_photograph_is_named(material):
    for path in (material / "photos").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(MapetError, match=r"photos/\d.png cannot be read"):
        composed(material)


def test_a_set_appears_whole_or_not_at_all(material, monkeypatch):
    def content(out):
        return {path.relative_to(out): path.is_file() and path.read_bytes() for path in out.rglob("*")}

    whole = content(composed(material))
    monkeypatch.setattr("mapet.data.shapes.discard", lambda *_: None)  # as after a kill
    save = Image.Image.save
    for stop in (1, 9, 31):
        count = iter(range(stop))

        def saved(image, path, count=count, **options):
            if next(count, None) is None:
                raise KeyboardInterrupt
            save(image, path, **options)

        monkeypatch.setattr(Image.Image, "save", saved)
        with pytest.raises(KeyboardInterrupt):
            composed(material, f"out{stop}")
        assert [path.name for path in (material / f"out{stop}").iterdir()] == [".mapet-part"]
    monkeypatch.undo()
    for stop in (1, 9, 31):
        assert content(composed(material, f"out{stop}")) == whole
    (material / "out" / "notes.txt").write_text("mine")
    with pytest.raises(MapetError, match="is not empty"):
        composed(material)


def test_a_class_folder_of_any_name_is_one_line_of_classes(material):
    (material / "shapes" / "trees").rename(material / "shapes" / "tr\nee\udcff")
    os.mkfifo(material / "photos" / "pipe.png")
    (material / "photos" / "folder.png").mkdir()
    assert open_segmentation(composed(material), "test").classes == ("background", "cars", "fish", r"tr\nee\udcff")
