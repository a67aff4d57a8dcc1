"""A packed folder is its original: the same pictures at the same places, whatever stopped the packing in between."""

import json
import os
import pickle
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mapet.data import packing as packing_module
from mapet.data.bad import BadPictures
from mapet.data.crop import Crops
from mapet.data.decode import Batch, decode, require_shown
from mapet.data.loader import Shuffled, in_order
from mapet.data.packed import JpegPack, RawPack, open_pack, packed_count
from mapet.data.packing import Packing, begin, pack
from mapet.data.picture import BadPicture
from mapet.data.policy import Centre, Policy
from mapet.data.source import Source, Subset, open_source, train_and_test, unwrapped
from mapet.disk import replace_file, write_from
from mapet.errors import MapetError
from mapet.view import View

SIDE, COUNT, BROKEN, GROUP = 12, 45, (3, 16, 44), 8
RAW, JPEG = Packing("uint8", SIDE), Packing("jpeg", SIDE, 90)
VIEW = View((SIDE, SIDE))
WRITES = 2 + 1 + -(-COUNT // GROUP) + 1  # two arrays, the header, the groups, the header


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Two classes of noise, wide, tall and small; three pictures cannot be read."""
    root = tmp_path_factory.mktemp("pictures")
    chance = np.random.default_rng(0)
    for name in ("a", "ü"):
        (root / name).mkdir()
    for number in range(COUNT):
        path = root / "aü"[number % 2] / f"{number:02d}.png"
        height, width = 6 + number % 5 * 4, 7 + number % 7 * 5
        Image.fromarray(chance.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    whole = open_source(str(root))
    for place in BROKEN:
        (root / whole.key(place)).write_bytes(b"")
    return open_source(str(root))


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing_module, "AT_ONCE", GROUP)


def start(source: Source, folder: Path, packing: Packing) -> Path:
    begin(folder, source, packing, {"source": source.name, "command": "mapet pack"})
    return folder


def packed(source: Source, folder: Path, packing: Packing, **options: Any) -> Path:
    counts = list(pack(start(source, folder, packing), source, packing, max_bad=0.5, **options))
    assert counts[-1] == len(source)
    return folder


@pytest.fixture(scope="module")
def packs(source: Source, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("packs")
    return {one.form: packed(source, root / one.form, one) for one in (RAW, JPEG)}


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def one_line(stop: pytest.ExceptionInfo[MapetError]) -> str:
    assert "\n" not in str(stop.value)
    return str(stop.value)


def stream(source: Source, **options: Any) -> Iterator[Batch]:
    settings = {"batch_size": 6, "epochs": 2, "seed": 5, "bad": BadPictures(COUNT, 0.5), **options}
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
    ours = open_source(str(packs[form]))
    assert isinstance(ours, RawPack if form == "uint8" else JpegPack)
    assert (len(ours), ours.classes) == (COUNT, source.classes)
    assert [ours.key(i) for i in range(COUNT)] == [source.key(i) for i in range(COUNT)]
    assert [ours.label(i) for i in range(COUNT)] == [source.label(i) for i in range(COUNT)]
    for place in BROKEN:
        with pytest.raises(BadPicture, match=r"^zero bytes$"):
            ours.read(place)
    listed = (packs[form] / "bad-pictures.txt").read_text().splitlines()
    assert listed == [f"{source.key(place)}\tzero bytes" for place in BROKEN]


@pytest.mark.parametrize("memory", [0, 1 << 20])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_over_a_raw_pack_is_that_over_the_original_bit_for_bit(source, packs, memory, workers):
    ours = open_source(str(packs["uint8"]))
    assert_same(stream(ours, memory=memory, workers=workers), stream(source, memory=0))
    mirrored = Crops(3, hflip=0.5)
    assert_same(stream(ours, crops=mirrored, workers=workers), stream(source, crops=mirrored))


def test_each_batch_is_announced_to_the_disk_while_the_one_before_is_used(packs, monkeypatch):
    said, ours = [], open_source(str(packs["uint8"]))
    for name in ("expect", "pixels"):
        work = getattr(RawPack, name)
        monkeypatch.setattr(
            RawPack, name, lambda pack, rows, name=name, work=work: (said.append((name, rows)), work(pack, rows))[1]
        )
    drawn = [[1, 2], [3], [BROKEN[1], 40]]
    list(decode(ours, [VIEW], ((0, places) for places in drawn), bad=BadPictures(COUNT, 0.5)))
    one, two, three = drawn
    assert said == [
        ("expect", one), ("expect", two), ("pixels", one), ("expect", three), ("pixels", two), ("pixels", three)
    ]  # fmt: skip


def test_bad_pictures_are_noted_once_with_the_original_s_reasons(source, packs):
    for one in (open_source(str(packs["uint8"])), source):
        bad = BadPictures(COUNT, 0.5)
        list(in_order(one, VIEW, 7, bad=bad))
        assert len(bad) == len(BROKEN)
        assert all(source.key(place) in bad for place in BROKEN)
    with pytest.raises(MapetError, match="zero bytes"):
        list(in_order(open_source(str(packs["uint8"])), VIEW, 7, bad=BadPictures(COUNT, 0.01)))


def test_part_of_a_raw_pack_is_part_of_the_original(source, packs):
    places = [40, 3, 2, 2, 17]
    parts = [Subset(Subset(one, range(COUNT)), places) for one in (open_source(str(packs["uint8"])), source)]
    assert unwrapped(parts[0], [1, 4])[1] == [3, 17]
    for ours, theirs in zip(*(in_order(part, VIEW, 2, bad=BadPictures(5, 0.5)) for part in parts), strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.index, theirs.index)


def test_a_raw_picture_is_what_the_view_shows(source, packs):
    ours = open_source(str(packs["uint8"]))
    for place in set(range(COUNT)) - set(BROKEN):
        assert np.array_equal(np.asarray(ours.read(place)), np.asarray(VIEW(source.read(place))))


def test_a_jpeg_is_the_whole_picture_shrunk_and_never_enlarged(source, packs):
    ours = open_source(str(packs["jpeg"]))
    shorter = set()
    for place in set(range(COUNT)) - set(BROKEN):
        theirs, expected = source.read(place), BytesIO()
        if (side := min(theirs.size)) > SIDE:
            sides = tuple(round(one * SIDE / side) for one in theirs.size)
            theirs = theirs.resize(sides, Image.Resampling.BICUBIC)
        theirs.save(expected, "JPEG", quality=90)
        assert np.array_equal(np.asarray(ours.read(place)), np.asarray(Image.open(expected)))
        shorter.add(min(ours.read(place).size))
    assert max(shorter) == SIDE > min(shorter)


def test_random_crops_of_a_jpeg_pack_hang_on_neither_workers_nor_start(packs):
    ours, crops = open_source(str(packs["jpeg"])), Crops(5, (0.2, 1.0), hflip=0.5)
    assert_same(stream(ours, crops=crops), stream(ours, crops=crops, workers=2))


@pytest.mark.parametrize("packing", [RAW, JPEG], ids=lambda one: one.form)
def test_workers_change_no_byte(source, packs, packing, tmp_path):
    assert content(packed(source, tmp_path / "again", packing, workers=2)) == content(packs[packing.form])


class Stop:
    """Lets ``left`` writes through and stops the next, before it or with a part of it in the file."""

    def __init__(self, left: int, half: bool) -> None:
        self.left, self.half = left, half

    def guard(self, work: Callable[..., None], spoil: Callable[..., None]) -> Callable[..., None]:
        def guarded(path: Path, *what: Any) -> None:
            if not self.left:
                if self.half:
                    spoil(path, *what)
                raise KeyboardInterrupt
            self.left -= 1
            work(path, *what)

        return guarded


def half_written(path: Path, first: int, content: bytes) -> None:
    write_from(path, first, content[: len(content) // 2])


@pytest.mark.parametrize("packing", [RAW, JPEG], ids=lambda one: one.form)
@pytest.mark.parametrize("half", [False, True])
def test_stopped_at_any_write_it_goes_on_to_the_same_bytes(source, packs, packing, half, tmp_path, monkeypatch):
    for left in range(WRITES + 1):
        folder, stop = tmp_path / f"{left}", Stop(left, half)
        with monkeypatch.context() as patch:
            patch.setattr(packing_module, "write_from", stop.guard(write_from, half_written))
            patch.setattr(packing_module.np, "save", stop.guard(np.save, lambda path, *_: path.write_bytes(b"?")))
            part = stop.guard(replace_file, lambda path, *_: path.with_name(f"{path.name}.part").write_bytes(b"?"))
            patch.setattr(packing_module, "replace_file", part)
            with pytest.raises(KeyboardInterrupt) if left < WRITES else nullcontext():
                packed(source, folder, packing)
        if 2 < left < WRITES:
            with pytest.raises(MapetError, match="is half packed"):
                open_pack(folder)
        assert content(packed(source, folder, packing)) == content(packs[packing.form])


def test_a_kill_between_pixels_and_their_count_leaves_nothing_double(source, packs, tmp_path):
    for groups in range(1 + COUNT // GROUP):
        folder = start(source, tmp_path / f"{groups}", RAW)
        counts = [done for _, done in zip(range(groups + 1), pack(folder, source, RAW, max_bad=0.5), strict=False)]
        assert packed_count(folder) == counts[-1] == groups * GROUP
        with (folder / "pictures.bin").open("ab") as file:
            file.write(b"torn" * 200)
        assert next(pack(folder, source, RAW)) == counts[-1]
        assert content(packed(source, folder, RAW)) == content(packs["uint8"])


def test_half_packed_or_damaged_is_one_line(source, packs, tmp_path):
    half = start(source, tmp_path / "half", RAW)
    next(counts := pack(half, source, RAW, max_bad=0.5))
    next(counts)
    with pytest.raises(MapetError) as stop:
        open_source(str(half))
    assert one_line(stop) == f"{half} is half packed (8 of 45 pictures): go on with mapet pack"
    os.truncate(half / "pictures.bin", 7)
    with pytest.raises(MapetError, match="shorter than it was"):
        list(pack(half, source, RAW, max_bad=0.5))


def spoil_header(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: os.truncate(folder / "pictures.bin", 100), "pictures.bin has 100 bytes"),
        (lambda folder: os.truncate(folder / "pictures.bin", 0), "pictures.bin has 0 bytes"),
        (lambda folder: (folder / "pictures.bin").unlink(), "No such file"),
        (lambda folder: os.truncate(folder / "offsets.npy", 200), "damaged"),
        (lambda folder: np.save(folder / "offsets.npy", np.arange(COUNT + 1)), "pictures.bin has"),
        (lambda folder: np.save(folder / "labels.npy", np.zeros(3)), "not of 45 pictures"),
        (lambda folder: os.truncate(folder / "keys.txt", 30), "not of 45 pictures"),
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
        open_source(str(folder))
    assert str(folder) in one_line(stop)


def test_a_jpeg_that_is_damaged_in_the_pack_is_a_bad_picture(packs, tmp_path):
    folder = shutil.copytree(packs["jpeg"], tmp_path / "pack")
    start, end = np.load(folder / "offsets.npy")[5:7].tolist()
    with (folder / "pictures.bin").open("r+b") as file:
        file.seek((start + end) // 2)
        file.write(b"\xff\xd9" * ((end - start) // 4))
    ours, bad = open_source(str(folder)), BadPictures(COUNT, 0.5)
    found = torch.cat([batch.index for batch in in_order(ours, VIEW, 8, bad=bad)]).tolist()
    assert found == [place for place in range(COUNT) if place not in (*BROKEN, 5)]
    assert ours.key(5) in bad


def test_another_pack_or_other_files_are_refused(source, packs, tmp_path):
    for other, said in ((Packing("uint8", 13), "size 12, and not 13"), (JPEG, "form uint8, and not jpeg")):
        with pytest.raises(MapetError, match=said):
            start(source, packs["uint8"], other)
    with pytest.raises(MapetError, match="count 45, and not 44"):
        start(Subset(source, range(44)), packs["uint8"], RAW)
    moved = Subset(source, [*range(1, COUNT), 0])
    with pytest.raises(MapetError, match="other pictures or labels"):
        begin(packs["uint8"], moved, RAW, {"source": source.name, "command": ""})
    (tmp_path / "notes.txt").touch()
    with pytest.raises(MapetError, match=r"is not empty .it holds notes.txt"):
        start(source, tmp_path, RAW)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(source, tmp_path, monkeypatch):
    monkeypatch.setattr(packing_module, "disk_usage", lambda folder: shutil._ntuple_diskusage(9, 9, COUNT * 432 - 1))
    with pytest.raises(MapetError, match="give --form jpeg") as stop:
        start(source, tmp_path / "pack", RAW)
    assert one_line(stop)
    assert not list((tmp_path / "pack").iterdir())
    start(source, tmp_path / "pack", JPEG)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (("uint9",), 'Did you mean "uint8"?'),
        (("tar",), "Known: jpeg, uint8."),
        (("uint8", 0), "--size"),
        (("jpeg", 4097), "--size"),
        (("uint8", 12, 90), "it is for --form jpeg"),
        (("jpeg", 12, 0), "--quality"),
        (("jpeg", 12, 101), "--quality"),
    ],
)
def test_settings_out_of_range(fields, said):
    with pytest.raises(MapetError) as stop:
        Packing(*fields)
    assert said in one_line(stop)


@pytest.mark.parametrize(
    ("view", "crops", "said"),
    [
        (View((16, 16)), None, ("12 x 12", "16 x 16", "--size 16", "--form jpeg", "--image-size 12")),
        (View((12, 12), "bilinear"), None, ("bicubic", "bilinear")),
        (VIEW, Crops(0, (0.2, 1.0)), ("12 x 12", "--scale", "--form jpeg")),
        (VIEW, Policy(0), ("12 x 12", "--scale", "--form jpeg")),
        (VIEW, Centre(0.875), ("12 x 12", "--crop-pct")),
    ],
)
def test_a_raw_pack_shows_its_own_view_alone(packs, view, crops, said):
    part = Subset(open_source(str(packs["uint8"])), range(COUNT - 1))
    with pytest.raises(MapetError) as stop:
        Shuffled(part, view, crops=crops, batch_size=6, epochs=1, seed=0, bad=BadPictures(COUNT))
    assert all(word in one_line(stop) for word in (*said, str(packs["uint8"])))
    Shuffled(open_source(str(packs["jpeg"])), view, crops=crops, batch_size=6, epochs=1, seed=0, bad=BadPictures(COUNT))


def test_looks_at_the_whole_view_are_allowed(packs):
    ours = open_source(str(packs["uint8"]))
    shown = next(stream(ours, crops=Centre(1.0)))
    for image, place in zip(shown.images, shown.index.tolist(), strict=True):
        assert np.array_equal(image.permute(1, 2, 0), np.asarray(ours.read(place)))
    require_shown(ours, [VIEW], Policy(0, (1.0, 1.0), (1.0, 1.0)))
    with pytest.raises(MapetError, match="16 x 16"):
        stream(ours, second=View((16, 16)))


def test_splits_are_packed_folders_in_the_place_of_folders(source, packs, tmp_path):
    for part in ("train", "val"):
        shutil.copytree(packs["uint8"], tmp_path / part)
    train, test = train_and_test(str(tmp_path))
    assert train.folder == open_source(str(tmp_path)).folder == tmp_path / "train"
    assert test.folder == tmp_path / "val"
    spoil_header(tmp_path / "val" / "pack.json", classes=["a", "b"])
    with pytest.raises(MapetError, match="classes"):
        train_and_test(str(tmp_path))
    spoil_header(tmp_path / "val" / "pack.json", complete=False)
    with pytest.raises(MapetError, match="half packed"):
        train_and_test(str(tmp_path))
    shutil.rmtree(tmp_path / "val")
    with pytest.raises(MapetError, match="a held-out part is not packed beside it"):
        open_source(str(tmp_path), "train")
    with pytest.raises(MapetError, match="no held-out split"):
        open_source(str(packs["jpeg"]), "test")


class Many:
    """A source of many keys and no pictures."""

    name, classes = "many", ("one",)

    def __len__(self) -> int:
        return 100_000

    def key(self, i: int) -> str:
        return f"folder/with/a/long/name/{i:08d}.jpg"

    def label(self, i: int) -> int:
        return 0


def test_a_pack_holds_no_object_for_each_picture(tmp_path):
    """Beside what is mapped from the disk, 8 bytes a picture; and a worker is told the folder alone."""
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
    assert ours.key(99_999) == many.key(99_999)
    sent = pickle.dumps(ours)
    assert len(sent) < 1000
    again = pickle.loads(sent)
    assert (len(again), again.key(7), again.pixels([7])[0].shape) == (100_000, many.key(7), (1, 3, SIDE, SIDE))
