"""A packed folder is its original: the same images at the same indices, whoever reads them; or it is refused."""

import json
import os
import pickle
import shutil
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mapet.data.crop import Crops
from mapet.data.dataset import ImageDataset, Subset, base_dataset, open_dataset, train_and_test
from mapet.data.decode import Batch, decode, require_shown
from mapet.data.image import UnreadableImage
from mapet.data.loader import Shuffled, in_order
from mapet.data.packed import JpegPack, RawPack, open_pack
from mapet.data.policy import Centre, Policy
from mapet.data.unreadable import UnreadableImages
from mapet.utils.errors import MapetError
from mapet.utils.view import CenterCropResize
from packs import BROKEN, COUNT, RAW, SIDE, noise, one_line, packed_both, spoil_header, start

VIEW = CenterCropResize((SIDE, SIDE))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return noise(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def packs(source, tmp_path_factory):
    return packed_both(source, tmp_path_factory.mktemp("packs"))


def stream(source: ImageDataset, **options: Any) -> Iterator[Batch]:
    settings = {"batch_size": 6, "epochs": 2, "seed": 5, "bad": UnreadableImages(COUNT, 0.5), **options}
    return Shuffled(source, VIEW, **settings)()


def assert_same(ours: Iterator[Batch], theirs: Iterator[Batch]) -> None:
    pairs = list(zip(ours, theirs, strict=True))
    assert len(pairs) == 2 * (COUNT // 6)
    for a, b in pairs:
        assert (a.epoch, a.images.dtype, a.images.is_contiguous()) == (b.epoch, torch.uint8, True)
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.images, b.images)


@pytest.mark.parametrize("form", ["uint8", "jpeg"])
def test_places_keys_labels_and_bad_pictures_are_those_of_the_original(source, packs, form):
    ours = open_dataset(str(packs[form]))
    assert isinstance(ours, RawPack if form == "uint8" else JpegPack)
    assert (len(ours), ours.classes) == (COUNT, source.classes)
    assert [ours.image_id(i) for i in range(COUNT)] == [source.image_id(i) for i in range(COUNT)]
    assert [ours.label(i) for i in range(COUNT)] == [source.label(i) for i in range(COUNT)]
    for index in BROKEN:
        with pytest.raises(UnreadableImage, match=r"^zero bytes$"):
            ours.read(index)
    listed = (packs[form] / "unreadable-images.txt").read_text().splitlines()
    assert listed == [f"{source.image_id(index)}\tzero bytes" for index in BROKEN]


@pytest.mark.parametrize("memory", [0, 1 << 20])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_over_a_raw_pack_is_that_over_the_original_bit_for_bit(source, packs, memory, workers):
    ours = open_dataset(str(packs["uint8"]))
    assert_same(stream(ours, memory=memory, workers=workers), stream(source, memory=0))
    mirrored = Crops(3, hflip=0.5)
    assert_same(stream(ours, crops=mirrored, workers=workers), stream(source, crops=mirrored))


def test_each_batch_is_announced_to_the_disk_while_the_one_before_is_used(packs, monkeypatch):
    said, ours = [], open_dataset(str(packs["uint8"]))
    for name in ("prefetch", "pixels"):
        work = getattr(RawPack, name)
        monkeypatch.setattr(
            RawPack, name, lambda pack, rows, name=name, work=work: (said.append((name, rows)), work(pack, rows))[1]
        )
    drawn = [[1, 2], [3], [BROKEN[1], 40]]
    list(decode(ours, [VIEW], ((0, indices) for indices in drawn), bad=UnreadableImages(COUNT, 0.5)))
    one, two, three = drawn
    assert said == [
        ("prefetch", one), ("prefetch", two), ("pixels", one), ("prefetch", three), ("pixels", two), ("pixels", three)
    ]  # fmt: skip


def test_bad_pictures_are_noted_once_with_the_original_s_reasons(source, packs):
    for one in (open_dataset(str(packs["uint8"])), source):
        bad = UnreadableImages(COUNT, 0.5)
        list(in_order(one, VIEW, 7, bad=bad))
        assert len(bad) == len(BROKEN)
        assert all(source.image_id(index) in bad for index in BROKEN)
    with pytest.raises(MapetError, match="zero bytes"):
        list(in_order(open_dataset(str(packs["uint8"])), VIEW, 7, bad=UnreadableImages(COUNT, 0.01)))


def test_part_of_a_raw_pack_is_part_of_the_original(source, packs):
    indices = [40, 3, 2, 2, 17]
    parts = [Subset(Subset(one, range(COUNT)), indices) for one in (open_dataset(str(packs["uint8"])), source)]
    assert base_dataset(parts[0], [1, 4])[1] == [3, 17]
    for ours, theirs in zip(*(in_order(part, VIEW, 2, bad=UnreadableImages(5, 0.5)) for part in parts), strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.index, theirs.index)


def test_a_raw_picture_is_what_the_view_shows(source, packs):
    ours = open_dataset(str(packs["uint8"]))
    for index in set(range(COUNT)) - set(BROKEN):
        assert np.array_equal(np.asarray(ours.read(index)), np.asarray(VIEW(source.read(index))))


def test_a_jpeg_is_the_whole_picture_shrunk_and_never_enlarged(source, packs):
    ours = open_dataset(str(packs["jpeg"]))
    shorter = set()
    for index in set(range(COUNT)) - set(BROKEN):
        theirs, expected = source.read(index), BytesIO()
        if (side := min(theirs.size)) > SIDE:
            sides = tuple(round(one * SIDE / side) for one in theirs.size)
            theirs = theirs.resize(sides, Image.Resampling.BICUBIC)
        theirs.save(expected, "JPEG", quality=90)
        assert np.array_equal(np.asarray(ours.read(index)), np.asarray(Image.open(expected)))
        shorter.add(min(ours.read(index).size))
    assert max(shorter) == SIDE > min(shorter)


def test_random_crops_of_a_jpeg_pack_hang_on_neither_workers_nor_start(packs):
    ours, crops = open_dataset(str(packs["jpeg"])), Crops(5, (0.2, 1.0), hflip=0.5)
    assert_same(stream(ours, crops=crops), stream(ours, crops=crops, workers=2))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: os.truncate(folder / "pictures.bin", 100), "pictures.bin has 100 bytes"),
        (lambda folder: os.truncate(folder / "pictures.bin", 0), "pictures.bin has 0 bytes"),
        (lambda folder: (folder / "pictures.bin").unlink(), "No such file"),
        (lambda folder: os.truncate(folder / "offsets.npy", 200), "damaged"),
        (lambda folder: np.save(folder / "offsets.npy", np.arange(COUNT + 1)), "pictures.bin has"),
        (lambda folder: np.save(folder / "labels.npy", np.zeros(3)), "not of 45 images"),
        (lambda folder: os.truncate(folder / "keys.txt", 30), "not of 45 images"),
        (lambda folder: os.truncate(folder / "keys.txt", 0), "damaged"),
        (lambda folder: (folder / "pack.json").write_text("{"), "pack.json is damaged"),
        (lambda folder: spoil_header(folder / "pack.json", format="mapet pack 9"), "another version"),
        (lambda folder: spoil_header(folder / "pack.json", form="png"), "another version"),
        (lambda folder: spoil_header(folder / "pack.json", size=11), "not of 11 x 11 pixels"),
        (lambda folder: spoil_header(folder / "pack.json", size=None), "damaged"),
    ],
)
def test_a_damaged_pack_is_named(packs, tmp_path, spoil, said):
    folder = shutil.copytree(packs["uint8"], tmp_path / "pack")
    spoil(folder)
    with pytest.raises(MapetError, match=said) as stop:
        open_dataset(str(folder))
    assert str(folder) in one_line(stop)


def test_a_jpeg_that_is_damaged_in_the_pack_is_a_bad_picture(packs, tmp_path):
    folder = shutil.copytree(packs["jpeg"], tmp_path / "pack")
    start, end = np.load(folder / "offsets.npy")[5:7].tolist()
    with (folder / "pictures.bin").open("r+b") as file:
        file.seek((start + end) // 2)
        file.write(b"\xff\xd9" * ((end - start) // 4))
    ours, bad = open_dataset(str(folder)), UnreadableImages(COUNT, 0.5)
    found = torch.cat([batch.index for batch in in_order(ours, VIEW, 8, bad=bad)]).tolist()
    assert found == [index for index in range(COUNT) if index not in (*BROKEN, 5)]
    assert ours.image_id(5) in bad


@pytest.mark.parametrize(
    ("view", "crops", "said"),
    [
        (CenterCropResize((16, 16)), None, ("12 x 12", "16 x 16", "size 16", "form jpeg", "image_size 12")),
        (CenterCropResize((12, 12), "bilinear"), None, ("bicubic", "bilinear")),
        (VIEW, Crops(0, (0.2, 1.0)), ("12 x 12", "scale", "form jpeg")),
        (VIEW, Policy(0), ("12 x 12", "scale", "form jpeg")),
        (VIEW, Centre(0.875), ("12 x 12", "crop_pct")),
    ],
)
def test_a_raw_pack_shows_its_own_view_alone(packs, view, crops, said):
    part = Subset(open_dataset(str(packs["uint8"])), range(COUNT - 1))
    with pytest.raises(MapetError) as stop:
        Shuffled(part, view, crops=crops, batch_size=6, epochs=1, seed=0, bad=UnreadableImages(COUNT))
    assert all(word in one_line(stop) for word in (*said, str(packs["uint8"])))
    Shuffled(
        open_dataset(str(packs["jpeg"])), view, crops=crops, batch_size=6, epochs=1, seed=0, bad=UnreadableImages(COUNT)
    )


def test_looks_at_the_whole_view_are_allowed(packs):
    ours = open_dataset(str(packs["uint8"]))
    shown = next(stream(ours, crops=Centre(1.0)))
    for image, index in zip(shown.images, shown.index.tolist(), strict=True):
        assert np.array_equal(image.permute(1, 2, 0), np.asarray(ours.read(index)))
    require_shown(ours, [VIEW], Policy(0, (1.0, 1.0), (1.0, 1.0)))
    with pytest.raises(MapetError, match="16 x 16"):
        stream(ours, second=CenterCropResize((16, 16)))


def test_splits_are_packed_folders_in_the_place_of_folders(source, packs, tmp_path):
    for part in ("train", "val"):
        shutil.copytree(packs["uint8"], tmp_path / part)
    train, test = train_and_test(str(tmp_path))
    assert train.folder == open_dataset(str(tmp_path)).folder == tmp_path / "train"
    assert test.folder == tmp_path / "val"
    spoil_header(tmp_path / "val" / "pack.json", classes=["a", "b"])
    with pytest.raises(MapetError, match="classes"):
        train_and_test(str(tmp_path))
    spoil_header(tmp_path / "val" / "pack.json", complete=False)
    with pytest.raises(MapetError, match="an incomplete pack"):
        train_and_test(str(tmp_path))
    shutil.rmtree(tmp_path / "val")
    with pytest.raises(MapetError, match="a held-out split is not packed"):
        open_dataset(str(tmp_path), "train")
    with pytest.raises(MapetError, match="no held-out split"):
        open_dataset(str(packs["jpeg"]), "test")


class Many:
    """A source of many keys and no images."""

    name, classes = "many", ("one",)

    def __len__(self) -> int:
        return 100_000

    def image_id(self, i: int) -> str:
        return f"folder/with/a/long/name/{i:08d}.jpg"

    def label(self, i: int) -> int:
        return 0


def test_a_pack_holds_no_object_for_each_picture(tmp_path):
    """Beside what is mapped from the disk, 8 bytes an image; and a worker is told the folder alone."""
    many = Many()
    folder = start(many, tmp_path / "pack", RAW)
    np.save(folder / "offsets.npy", np.arange(len(many) + 1) * RAW.row)
    (folder / "pictures.bin").touch()
    os.truncate(folder / "pictures.bin", len(many) * RAW.row)
    spoil_header(folder / "pack.json", complete=True)
    tracemalloc.start()
    ours = open_pack(folder)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 10 * len(many)
    assert ours.image_id(99_999) == many.image_id(99_999)
    sent = pickle.dumps(ours)
    assert len(sent) < 1000
    again = pickle.loads(sent)
    assert (len(again), again.image_id(7), again.pixels([7])[0].shape) == (
        100_000,
        many.image_id(7),
        (1, 3, SIDE, SIDE),
    )


def flipped(path, position, bit=0):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("form", ["uint8", "jpeg"])
def test_a_changed_bit_of_an_image_makes_it_unreadable_and_no_other(packs, form, tmp_path):
    folder = shutil.copytree(packs[form], tmp_path / "pack")
    start, end = np.load(folder / "offsets.npy")[7:9].tolist()
    flipped(folder / "pictures.bin", (start + end) // 2)
    ours, whole = open_dataset(str(folder)), open_dataset(str(packs[form]))
    with pytest.raises(UnreadableImage, match="its bytes in the pack were changed"):
        ours.read(7)
    bad = UnreadableImages(COUNT, 0.5)
    found = torch.cat([batch.index for batch in in_order(ours, VIEW, 8, bad=bad)]).tolist()
    assert found == [index for index in range(COUNT) if index not in (*BROKEN, 7)]
    assert bad.reason(ours.image_id(7)) == "its bytes in the pack were changed"
    for index in found:
        assert np.array_equal(np.asarray(ours.read(index)), np.asarray(whole.read(index)))


@pytest.mark.parametrize("name", ["keys.txt", "labels.npy", "offsets.npy", "sums.bin", "pack.json"])
def test_a_changed_bit_elsewhere_is_refused(packs, tmp_path, name):
    folder = shutil.copytree(packs["jpeg"], tmp_path / "pack")
    size, whole = (folder / name).stat().st_size, open_pack(folder)
    for position in range(0, size, max(1, size // 40)):
        flipped(folder / name, position)
        with suppress(MapetError):
            ours = open_pack(folder)
            assert name == "pack.json", position  # the name of the hash
            assert (ours.classes, ours.size, ours.view) == (whole.classes, whole.size, whole.view)
        flipped(folder / name, position)
    assert open_pack(folder).verified


def test_a_pack_of_version_0_1_has_no_hashes(packs, tmp_path):
    folder = shutil.copytree(packs["uint8"], tmp_path / "pack")
    header = json.loads((folder / "pack.json").read_text())
    (folder / "sums.bin").unlink()
    (folder / "pack.json").write_text(
        json.dumps({name: value for name, value in header.items() if name not in ("files", "fingerprint")})
    )
    ours = open_pack(folder)
    assert not ours.verified
    assert_same(stream(ours), stream(open_pack(packs["uint8"])))
