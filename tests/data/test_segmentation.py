"""Image and mask pairs, and sets composed of shapes over photographs."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from pydantic import TypeAdapter

import mapet
from mapet.build.segmentation_set import both_splits, open_segmentation
from mapet.cli import main
from mapet.config.segmentation_set import SetFile
from mapet.data.segmentation import MaskedImages
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


def test_shapes_lie_anywhere_within_the_image(tmp_path):
    """Opaque squares, one in each image: each is whole, and their corners are spread over both axes."""
    (tmp_path / "photos").mkdir()
    for i in range(4):
        for name in ("a", "b"):
            (tmp_path / "shapes" / name).mkdir(parents=True, exist_ok=True)
            pixels = np.zeros((30, 30, 4), np.uint8)
            pixels[5:25, 5:25] = 255
            Image.fromarray(pixels).save(tmp_path / "shapes" / name / f"{i}.png")
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / f"{i}.png")
    out = compose_shapes(
        tmp_path / "shapes", tmp_path / "photos", tmp_path / "out", classes=2, train=60, test=1, size=40, objects=1
    )
    shares = []
    for path in sorted((out / "annotations" / "training").iterdir()):
        rows, columns = np.nonzero(np.asarray(Image.open(path)) > 1)
        side = 1 + rows.max() - rows.min()
        assert side == 1 + columns.max() - columns.min()
        assert len(rows) == side**2
        assert 12 <= side <= 28
        shares.append([rows.min() / (40 - side), columns.min() / (40 - side)])
    assert (np.min(shares, axis=0) < 0.1).all()
    assert (np.max(shares, axis=0) > 0.9).all()
    assert (np.abs(np.mean(shares, axis=0) - 0.5) < 0.15).all()


def test_an_image_carries_its_targets_as_alpha(layouts):
    """-1, which is ignored, becomes 255."""
    pairs = open_segmentation(layouts / "ade")
    images = MaskedImages(pairs, "set")
    for i in range(len(images)):
        image, targets = pairs.pair(i)
        red, green, blue, alpha = images.read(i).split()
        assert np.array_equal(np.asarray(Image.merge("RGB", (red, green, blue))), np.asarray(image))
        assert np.array_equal(np.asarray(alpha), np.where(targets < 0, 255, targets))
        assert {0, 1, 255} == set(np.unique(alpha).tolist())


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
        ("images", "has no images"),
        ("names", "has no lines: write one class name a line"),
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


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """The same six pairs in ADE20K's layout, and as other data sets keep them; labels 0, 1 and 255 in these."""
    root, chance = tmp_path_factory.mktemp("layouts"), np.random.default_rng(0)
    folders = {
        "ade": ("images/{split}/{name}.jpg", "annotations/{split}/{name}.png"),
        "city": ("left/{split}/town {n}/{name}_left.png", "fine/{split}/town {n}/{name}_fine_ids.png"),
        "voc": ("JPEG/{name}.jpg", "Class/{name}.png"),
    }
    names = {"training": "dbca", "validation": "fe"}
    for split, letters in names.items():
        for n, name in enumerate(letters):
            pixels, labels = chance.integers(0, 256, (8, 6, 3), np.uint8), chance.choice([0, 1, 255], (8, 6))
            for layout, (image, mask) in folders.items():
                for path, values in ((image, pixels), (mask, labels if layout != "ade" else (labels + 1) % 256)):
                    file = root / layout / path.format(split=split, name=name, n=n % 2)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(values.astype(np.uint8)).save(file, quality=95)
        (root / "voc" / f"{split}.txt").write_text("\n".join(letters))
    Image.new("RGB", (8, 8)).save(root / "voc" / "JPEG" / "without mask.jpg")
    (root / "ade" / "classes.txt").write_text("sky\nsea\n")
    zero = "classes: [sky, sea]\nreduce_zero_label: false\n"
    (root / "voc" / "set.yaml").write_text(
        "train: {images: JPEG, masks: Class, names: training.txt}\n"
        f"test: {{images: JPEG, masks: Class, names: validation.txt}}\n{zero}"
    )
    (root / "city.yaml").write_text(
        "train: {images: city/left/training, masks: city/fine/training}\n"
        "test: {images: city/left/validation, masks: city/fine/validation}\n"
        f"image_suffix: _left.png\nmask_suffix: _fine_ids.png\n{zero}"
    )
    return root


def contents(pairs):
    """Targets and class names by the name of the image."""
    return pairs.classes, {
        path.stem.partition("_")[0]: pairs.pair(i)[1].tolist() for i, (path, _) in enumerate(pairs.pairs)
    }


@pytest.mark.parametrize("name", ["voc/set.yaml", "city.yaml"])
def test_a_file_that_names_folders_opens_the_same_set(layouts, name):
    for split in ("train", "test"):
        expected = contents(open_segmentation(layouts / "ade", split))
        assert {0, 1, -1} == {label for rows in expected[1].values() for row in rows for label in row}
        assert contents(open_segmentation(layouts / name, split)) == expected
        ids = MaskedImages(open_segmentation(layouts / name, split), "set")
        assert len({ids.image_id(i) for i in range(len(ids))}) == len(ids)
    assert contents(open_segmentation(layouts / name, reduce_zero_label=False))[1] != {}


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (["sky", "sea", "sky"], 'has the class "sky" twice'),
        (["sky"], "must have 2 to 254 classes, got 1"),
        ([f"class {n}" for n in range(255)], "must have 2 to 254 classes, got 255"),
    ],
)
def test_classes_are_two_to_254_of_different_names(layouts, tmp_path, classes, said):
    text = (layouts / "city.yaml").read_text().replace("city/", f"{layouts}/city/")
    for names in (["sky", "sea"], [f"class {n}" for n in range(254)]):
        (tmp_path / "set.yaml").write_text(text.replace("[sky, sea]", str(names)))
        assert both_splits(tmp_path / "set.yaml")[1].classes == tuple(names)
    (tmp_path / "set.yaml").write_text(text.replace("[sky, sea]", str(classes)))
    with pytest.raises(MapetError, match=said):
        both_splits(tmp_path / "set.yaml")


def test_without_test_folders_a_share_of_the_pairs_is_tested(layouts, tmp_path):
    text = f"train: {{images: {layouts}/city/left, masks: {layouts}/city/fine}}\nclasses: [sky, sea]\n"
    text += "image_suffix: _left.png\nmask_suffix: _fine_ids.png\nreduce_zero_label: false\n"
    (tmp_path / "set.yaml").write_text(f"{text}test_share: 0.34\n")
    train, test = (contents(open_segmentation(tmp_path / "set.yaml", split))[1] for split in ("train", "test"))
    assert len(test) == 2
    assert len(train) == 4
    expected = [contents(open_segmentation(layouts / "ade", split))[1] for split in ("train", "test")]
    assert {**train, **test} == {**expected[0], **expected[1]}
    again = contents(open_segmentation(tmp_path / "set.yaml", "test"))[1]
    assert again == test


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("train: {images: none, masks: Class}\nclasses: [a, b]", "none does not exist: give a folder"),
        (
            "train: {images: JPEG, masks: Class}\nclasses: [a, b]",
            r"without mask.jpg has no mask .* \(1 such",
        ),
        (
            "train: {images: JPEG, masks: Class, names: more.txt}\nclasses: [a, b]",
            r"names x, but .* no such image \(2",
        ),
        ("train: {images: JPEG, masks: Class, names: no.txt}\nclasses: [a, b]", "no.txt cannot be read"),
        ("train: {images: JPEG, masks: Class}", "give either classes or class_file"),
        ("train: {images: JPEG}\nclasses: [a, b]", "masks is missing"),
        ("train: {images: JPEG, masks: Class}\nclass_file: empty.txt", "empty.txt has no lines"),
        ("train: {images: JPEG, masks: Class}\nclasses: [a, b]\nimage_suffix: .gif", "has no images that end in .gif"),
        ("train: {images: JPEG, mask: Class}\nclasses: [a, b]", 'no setting "mask" in train. Did you mean "masks"'),
        ("train: {images: ., masks: Class}\nclasses: [a, b]", "has the images"),
        ("train: [", "is not YAML"),
    ],
)
def test_wrong_files_of_folders_are_one_line(layouts, text, line):
    folder = layouts / "voc"
    (folder / "more.txt").write_text("a\nx\ny\n")
    (folder / "empty.txt").write_text("\n")
    twin = folder / "JPEG" / "a.png"
    if text.startswith("train: {images: ."):
        Image.new("RGB", (8, 8)).save(twin)
    (folder / "wrong.yaml").write_text(text)
    try:
        with pytest.raises(MapetError, match=line) as caught:
            open_segmentation(folder / "wrong.yaml")
        assert "\n" not in str(caught.value)
        assert str(caught.value).count("wrong.yaml") <= 1
    finally:
        twin.unlink(missing_ok=True)


def test_the_files_of_the_documentation_are_read():
    page = (Path(__file__).parents[2] / "docs" / "segmentation.md").read_text()
    found = re.findall(r"```yaml\n(.*?)```", page, re.S)
    assert len(found) == 3
    for text in found:
        assert TypeAdapter(SetFile).validate_python(yaml.safe_load(text)).train.images


def test_an_output_among_the_images_of_a_file_is_refused(layouts, tmp_path):
    with pytest.raises(MapetError, match=r"out .* is inside"):
        mapet.segment("random", layouts / "voc" / "set.yaml", layouts / "voc" / "JPEG" / "run")


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
