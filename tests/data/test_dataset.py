"""Folders of every shape: keys, labels, splits, and the one line that says what is wrong."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mapet
from mapet.data import packed_strings
from mapet.data.dataset import ImageDataset, Subset, open_dataset, require_labels, split_held_out, train_and_test
from mapet.data.folder import listed_once
from mapet.data.listing import Listing
from mapet.data.packed_strings import PackedStrings
from mapet.utils.errors import MapetError


def fill(root: Path, names: Iterable[str]) -> Path:
    """Write a tiny image for every name; its colour follows from the name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), (len(name), 0, 0)).save(path, format="PNG")
    return root


def keys(source: ImageDataset) -> list[str]:
    return [source.image_id(i) for i in range(len(source))]


def labels(source: ImageDataset) -> list[int]:
    return [source.label(i) for i in range(len(source))]


def one_line(stop: pytest.ExceptionInfo[MapetError]) -> str:
    assert "\n" not in str(stop.value)
    return str(stop.value)


def test_pictures_nested_in_any_way_need_no_labels(tmp_path: Path) -> None:
    fill(tmp_path, ["b.JPG", "a/x.png", "a/deep/er/y.webp", "z.tiff", ".hidden.png", ".git/i.png"])
    (tmp_path / "notes.txt").write_text("no image")
    source = open_dataset(str(tmp_path))
    assert keys(source) == ["a/deep/er/y.webp", "a/x.png", "b.JPG", "z.tiff"]
    assert (source.classes, set(labels(source))) == ((), {-1})
    assert source.name == f"folder {tmp_path}"
    assert [source.read(i).getpixel((0, 0)) for i in range(4)] == [(len(key), 0, 0) for key in keys(source)]


def test_one_folder_per_class_makes_labels(tmp_path: Path) -> None:
    fill(tmp_path, ["dog/1.png", "cat/2.png", "cat/more/3.png", "cat b/4.png"])
    (tmp_path / "empty").mkdir()
    source = open_dataset(str(tmp_path))
    assert source.classes == ("cat", "cat b", "dog")
    assert [key.split("/")[0] for key in keys(source)] == [source.classes[label] for label in labels(source)]


@pytest.mark.parametrize("names", [["only/1.png", "only/2.png"], ["a/1.png", "b/2.png", "top.png"]])
def test_one_folder_or_loose_pictures_make_none(tmp_path: Path, names: list[str]) -> None:
    source = open_dataset(str(fill(tmp_path, names)))
    assert (source.classes, set(labels(source))) == ((), {-1})


def test_links_are_followed_but_never_for_ever(tmp_path: Path) -> None:
    root = fill(tmp_path / "root", ["a/1.png"])
    outside = fill(tmp_path / "outside", ["2.png"])
    (root / "linked").symlink_to(outside)
    (root / "a" / "up").symlink_to(root)
    (outside / "back").symlink_to(root / "a")
    (root / "self.png").symlink_to("self.png")
    source = open_dataset(str(root))
    assert {"a/1.png", "linked/2.png", "linked/back/1.png", "self.png"} <= set(keys(source))
    assert len(set(keys(source))) == len(source) < 10


def test_names_that_cannot_be_printed_become_one_line_keys(tmp_path: Path) -> None:
    fill(tmp_path, ["line\nbreak.png"])
    with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb") as file:
        Image.new("RGB", (1, 1)).save(file, format="PNG")
    source = open_dataset(str(tmp_path))
    assert keys(source) == ["caf\\udce9.png", "line\\nbreak.png"]
    assert [source.read(i).size for i in range(2)] == [(1, 1), (4, 3)]


def test_train_beside_val_are_the_splits(tmp_path: Path) -> None:
    fill(tmp_path, ["train/a/1.png", "train/b/2.png", "val/a/1.png", "val/b/2.png"])
    train, test = open_dataset(str(tmp_path)), open_dataset(str(tmp_path), "test")
    assert keys(train) == ["train/a/1.png", "train/b/2.png"]
    assert keys(test) == ["val/a/1.png", "val/b/2.png"]
    assert train.classes == test.classes == ("a", "b")
    assert labels(train) == labels(test) == [0, 1]
    assert test.name == f"folder {tmp_path / 'val'}"
    assert test.read(0).size == (4, 3)


def test_an_unlabelled_test_folder_gives_way_to_a_labelled_val(tmp_path: Path) -> None:
    fill(tmp_path, ["train/a/1.png", "train/b/2.png", "test/1.png", "val/a/1.png", "val/b/1.png"])
    assert keys(open_dataset(str(tmp_path), "test")) == ["val/a/1.png", "val/b/1.png"]


def test_splits_whose_classes_differ_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, ["train/a/1.png", "train/b/2.png", "test/a/1.png", "test/c/2.png"])
    assert len(open_dataset(str(tmp_path))) == 2
    with pytest.raises(MapetError) as stop:
        open_dataset(str(tmp_path), "test")
    assert "missing b, unknown c" in one_line(stop)


def test_a_class_name_is_one_line_of_text(tmp_path: Path) -> None:
    names = [b"a\nb", b"bird", b"c\xff"]
    for split, used in {"train": names, "test": names[1:]}.items():
        for name in used:
            folder = os.path.join(os.fsencode(tmp_path), split.encode(), name)
            os.makedirs(folder)
            Image.new("RGB", (4, 4)).save(os.fsdecode(os.path.join(folder, b"1.png")))
    train, test = (open_dataset(str(tmp_path), split) for split in ("train", "test"))
    assert train.classes == test.classes == ("a\\nb", "bird", "c\\udcff")
    assert [train.label(i) for i in range(3)] == [0, 1, 2]
    assert [test.label(i) for i in range(2)] == [1, 2]


def noted(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("note")]


def test_all_that_pillow_decodes_is_found_and_the_rest_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="mapet")
    fill(tmp_path, ["a/1.jfif", "a/2.TGA", "a/plain", "b/scan.001", "b/3.jp2", "b/4.jpg"])
    for name in ["a/1.heic", "a/2.heic", "b/x.mp4", "b/README", "c/y.heic", ".hidden", "recipe.yaml", "c/.z.mp4"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("Python and other words")
    os.mkfifo(tmp_path / "a/pipe")
    for _ in range(2):
        source = open_dataset(str(tmp_path))
    assert keys(source) == ["a/1.jfif", "a/2.TGA", "a/plain", "b/3.jp2", "b/4.jpg", "b/scan.001"]
    assert noted(caplog) == [
        f"note      folder {tmp_path}: 6 files left alone: 3 .heic, 2 without suffix, 1 .mp4; "
        "no image in the sub-folder c"
    ]


def test_files_with_a_known_suffix_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, ["a.png", "b.avif", "c.txt"])
    monkeypatch.setattr("mapet.data.listing.is_image", lambda path: pytest.fail(f"{path} was opened"))
    assert keys(open_dataset(str(tmp_path))) == ["a.png", "b.avif"]


def test_a_folder_of_mapet_is_left_alone_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="mapet")
    fill(tmp_path, ["a/1.png", "b/2.png"])
    (tmp_path / "tokens").mkdir()
    for name in ("store.json", "tokens.bin", "keys.txt", "unreadable-images.txt"):
        (tmp_path / "tokens" / name).touch()
    source = open_dataset(str(tmp_path))
    require_labels(source)
    assert not noted(caplog)


@pytest.mark.parametrize(("highest", "said"), [(4095, True), (65535, False)])
@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_twelve_bits_in_sixteen_are_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, highest: int, said: bool
) -> None:
    caplog.set_level("INFO", logger="mapet")
    fill(tmp_path, ["0.jpg", "1.png"])
    for n in range(30):
        values = np.linspace(0, highest // (1 + n % 2), 64).reshape(8, 8).astype(np.uint16)
        Image.fromarray(values).save(tmp_path / f"x{n:02}.{suffix}")
    for _ in range(2):
        open_dataset(str(tmp_path))
    assert len(noted(caplog)) == said
    if said:
        assert "at most 4095 of 0 … 65535 (x" in noted(caplog)[0]


def test_many_kinds_of_files_make_a_short_line(tmp_path: Path) -> None:
    for n in range(9):
        (tmp_path / f"{n}.x{n}").touch()
    with pytest.raises(MapetError, match=r"9 files left alone: 1 \.x0, 1 \.x1, 1 \.x2, 1 \.x3, 5 others"):
        open_dataset(str(tmp_path))


@pytest.mark.parametrize(("name", "why"), [("c/1.heic", "1 file left alone: 1 .heic"), ("c", "it is empty")])
def test_a_class_folder_without_an_image_is_named(tmp_path: Path, name: str, why: str) -> None:
    fill(tmp_path, ["a/1.png", "b/2.png"])
    (tmp_path / "c").mkdir()
    if name != "c":
        (tmp_path / name).touch()
    source = open_dataset(str(tmp_path))
    with pytest.raises(MapetError) as stop:
        require_labels(Subset(source, [0, 1]))
    assert f"no usable image in its class folder c ({why}): convert" in one_line(stop)


def test_a_stray_image_that_takes_the_labels_is_named(tmp_path: Path) -> None:
    fill(tmp_path, ["d/a/1.png", "d/b/2.png", "d/contact-sheet.jpg"])
    with pytest.raises(MapetError) as stop:
        require_labels(*train_and_test(str(tmp_path / "d"), 0.5, seed=2), option="--eval-data")
    assert "has no labels, as contact-sheet.jpg lies next to its sub-folders: move that away, or give" in one_line(stop)
    fill(tmp_path / "flat", ["1.png"])
    with pytest.raises(MapetError, match="has no labels: give data, a folder with one sub-folder per class"):
        require_labels(open_dataset(str(tmp_path / "flat")))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_stray_image_of_one_split_is_named(tmp_path: Path, split: str) -> None:
    fill(tmp_path, ["train/a/1.png", "train/b/2.png", "test/a/1.png", "test/b/2.png", f"{split}/stray.png"])
    with pytest.raises(MapetError) as stop:
        open_dataset(str(tmp_path), "test")
    assert f"{tmp_path / split} has no labels, as stray.png lies next to its sub-folders" in one_line(stop)


@pytest.mark.parametrize("present", [["a", "c"], ["c"]])
@pytest.mark.parametrize("empty", [True, False])
def test_a_test_split_may_lack_a_class(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, present: list[str], empty: bool
) -> None:
    caplog.set_level("INFO", logger="mapet")
    fill(tmp_path, [f"train/{name}/1.png" for name in "abc"] + [f"test/{name}/2.png" for name in present])
    if empty:
        (tmp_path / "test/b").mkdir()
    train, test = train_and_test(str(tmp_path))
    require_labels(train, test)
    assert test.classes == train.classes == ("a", "b", "c")
    assert labels(test) == [train.classes.index(name) for name in present]
    assert len(noted(caplog)) == 1
    assert f"{tmp_path / 'test'} has no images of " in noted(caplog)[0]
    assert "scores are over" in noted(caplog)[0]
    (tmp_path / "test/b").mkdir(exist_ok=True)
    (tmp_path / "test/b/x.heic").touch()
    with pytest.raises(MapetError, match="no usable image in its class folder b"):
        require_labels(*train_and_test(str(tmp_path)))


def test_a_folder_without_splits_has_no_test_split(tmp_path: Path) -> None:
    fill(tmp_path, ["train/1.png", "other/2.png"])
    assert keys(open_dataset(str(tmp_path))) == ["other/2.png", "train/1.png"]
    with pytest.raises(MapetError) as stop:
        open_dataset(str(tmp_path), "test")
    assert str(tmp_path) in one_line(stop)


def test_what_is_missing_is_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "flowers").mkdir()
    for wrong in ("flowres", "flowres/inner"):
        with pytest.raises(MapetError) as stop:
            open_dataset(str(tmp_path / wrong))
        assert 'Did you mean "flowers"?' in one_line(stop)
    with pytest.raises(MapetError, match='Did you mean "cifar10"'):
        open_dataset("cifar-10")
    with pytest.raises(MapetError, match='Did you mean "test"'):
        open_dataset(str(tmp_path), "tset")


def test_an_empty_folder_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(MapetError) as stop:
        open_dataset(str(tmp_path))
    assert ".jpg .jpeg .png" in one_line(stop)
    with pytest.raises(MapetError, match=r"is a file"):
        open_dataset(str(tmp_path / "notes.txt"))


def test_a_subset_keeps_keys_labels_and_pictures(tmp_path: Path) -> None:
    source = open_dataset(str(fill(tmp_path, ["a/1.png", "b/22.png", "b/333.png"])))
    part = Subset(source, np.array([2, 0]), "odd")
    assert (keys(part), labels(part), part.classes) == (["b/333.png", "a/1.png"], [1, 0], ("a", "b"))
    assert part.read(0).getpixel((0, 0)) == source.read(2).getpixel((0, 0))
    assert part.name == f"{source.name} (odd, 2 of 3)"


def test_held_out_is_disjoint_complete_and_about_its_share(tmp_path: Path) -> None:
    source = open_dataset(str(fill(tmp_path, (f"{n}.png" for n in range(300)))))
    rest, part = split_held_out(source, 0.2)
    assert not set(keys(rest)) & set(keys(part))
    assert sorted(keys(rest) + keys(part)) == keys(source)
    assert 30 <= len(part) <= 90  # 60 expected, deviation 7
    assert set(keys(split_held_out(source, 0.2, seed=1)[1])) != set(keys(part))


def test_held_out_does_not_move_when_pictures_are_added(tmp_path: Path) -> None:
    before = split_held_out(open_dataset(str(fill(tmp_path, (f"{n}.png" for n in range(100))))))
    after = split_held_out(open_dataset(str(fill(tmp_path, (f"{n}-new.png" for n in range(100))))))
    assert all(set(keys(old)) < set(keys(new)) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("share", [0.0, 1.0, 0.01])
def test_an_empty_side_is_refused(tmp_path: Path, share: float) -> None:
    source = open_dataset(str(fill(tmp_path, ["a.png", "b.png"])))
    with pytest.raises(MapetError, match="leaves a part empty"):
        split_held_out(source, share)


def test_train_and_test_uses_splits_where_there_are_any(tmp_path: Path) -> None:
    split = fill(tmp_path / "split", ["train/a/1.png", "train/b/2.png", "test/a/1.png", "test/b/1.png"])
    assert [keys(part)[0] for part in train_and_test(str(split))] == ["train/a/1.png", "test/a/1.png"]
    whole = fill(tmp_path / "whole", (f"{n}.png" for n in range(50)))
    expected = split_held_out(open_dataset(str(whole)), 0.3, 7)
    assert [keys(part) for part in train_and_test(str(whole), 0.3, 7)] == [keys(part) for part in expected]


def test_lines_are_the_strings_they_were_made_of():
    strings = ["", "a/b.png", "ä\udcff", "", "z" * 300]
    lines = PackedStrings(strings)
    assert list(lines) == strings
    assert [lines[i] for i in range(-5, 5)] == strings * 2
    assert lines[1:3] == strings[1:3]
    for index in (5, -6):
        with pytest.raises(IndexError):
            lines[index]


def test_more_strings_than_are_encoded_at_a_time(monkeypatch):
    monkeypatch.setattr(packed_strings, "BLOCK", 4)
    for count in (0, 3, 4, 9):
        strings = ["é" * i for i in range(count)]
        assert list(PackedStrings(iter(strings))) == strings


def test_a_folder_is_listed_once_within_a_block_and_again_after_it(tmp_path):
    fill(tmp_path, ["a/1.png", "b/2.png"])
    with listed_once():
        first = open_dataset(str(tmp_path))
        fill(tmp_path, ["a/3.png"])
        assert open_dataset(f"{tmp_path}/../{tmp_path.name}") is first
        assert len(open_dataset(str(tmp_path), max_pixels=10**6)) == 3  # other settings
    assert len(open_dataset(str(tmp_path))) == 3


def test_a_training_lists_its_images_once(images, tmp_path, monkeypatch):
    tops, init = [], Listing.__init__
    monkeypatch.setattr(Listing, "__init__", lambda self, top, prefix: tops.append(top) or init(self, top, prefix))
    model = {"model": "custom", "embed_dim": 16, "depth": 1, "num_heads": 2, "image_size": 16, "patch_size": 8}
    mapet.pretrain(
        data=images,
        out=tmp_path / "run",
        objective="mim",
        vocab_size=4,
        epochs=1,
        batch_size=8,
        teacher="pixels",
        **model,
    )
    assert tops == [str(images)]
