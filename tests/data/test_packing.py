"""Packing ends with the same bytes whatever stopped it in between, and writes over nothing that is not its own."""

import logging
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from mapet.data import packing as packing_module
from mapet.data.dataset import Subset, open_dataset
from mapet.data.packed import open_pack, packed_count
from mapet.data.packing import Packing, begin, pack
from mapet.utils.errors import MapetError
from mapet.utils.io import replace_file, write_from
from packs import COUNT, JPEG, RAW, noise, one_line, packed, packed_both, start

GROUP = 8
WRITES = 2 + 1 + 2 * -(-COUNT // GROUP) + 1  # two arrays, the header, the groups and their hashes, the header


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return noise(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def packs(source, tmp_path_factory):
    return packed_both(source, tmp_path_factory.mktemp("packs"))


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing_module, "GROUP", GROUP)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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
            part = stop.guard(replace_file, lambda path, *_: path.with_name(f"{path.name}.part").write_bytes(b"?"))
            patch.setattr(packing_module, "replace_file", part)
            with pytest.raises(KeyboardInterrupt) if left < WRITES else nullcontext():
                packed(source, folder, packing)
        if 2 < left < WRITES:
            with pytest.raises(MapetError, match="is an incomplete pack"):
                open_pack(folder)
        assert content(packed(source, folder, packing)) == content(packs[packing.form])


def test_a_kill_between_pixels_and_their_count_leaves_nothing_double(source, packs, tmp_path):
    for groups in range(1 + COUNT // GROUP):
        folder = start(source, tmp_path / f"{groups}", RAW)
        counts = [
            done for _, done in zip(range(groups + 1), pack(folder, source, RAW, max_bad_fraction=0.5), strict=False)
        ]
        assert packed_count(folder) == counts[-1] == groups * GROUP
        with (folder / "pictures.bin").open("ab") as file:
            file.write(b"torn" * 200)
        assert next(pack(folder, source, RAW)) == counts[-1]
        assert content(packed(source, folder, RAW)) == content(packs["uint8"])


def test_half_packed_or_damaged_is_one_line(source, packs, tmp_path):
    half = start(source, tmp_path / "half", RAW)
    next(counts := pack(half, source, RAW, max_bad_fraction=0.5))
    next(counts)
    with pytest.raises(MapetError) as stop:
        open_dataset(str(half))
    assert one_line(stop) == f"{half} is an incomplete pack (8 of 45 images): complete it with mapet pack"
    os.truncate(half / "pictures.bin", 7)
    with pytest.raises(MapetError, match="is truncated"):
        list(pack(half, source, RAW, max_bad_fraction=0.5))


def test_another_pack_or_other_files_are_refused(source, packs, tmp_path):
    for other, said in ((Packing("uint8", 13), "size 12, not 13"), (JPEG, "form uint8, not jpeg")):
        with pytest.raises(MapetError, match=said):
            start(source, packs["uint8"], other)
    with pytest.raises(MapetError, match="count 45, not 44"):
        start(Subset(source, range(44)), packs["uint8"], RAW)
    moved = Subset(source, [*range(1, COUNT), 0])
    with pytest.raises(MapetError, match="other images or labels"):
        begin(packs["uint8"], moved, RAW, {"source": source.name, "command": ""})
    (tmp_path / "notes.txt").touch()
    with pytest.raises(MapetError, match=r"is not empty .it holds notes.txt"):
        start(source, tmp_path, RAW)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(source, tmp_path, monkeypatch):
    monkeypatch.setattr(packing_module, "disk_usage", lambda folder: shutil._ntuple_diskusage(9, 9, COUNT * 432 - 1))
    with pytest.raises(MapetError, match="use form jpeg") as stop:
        start(source, tmp_path / "pack", RAW)
    assert one_line(stop)
    assert not list((tmp_path / "pack").iterdir())
    start(source, tmp_path / "pack", JPEG)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (("uint9",), 'Did you mean "uint8"?'),
        (("tar",), "Known: jpeg, uint8."),
        (("uint8", 0), "size"),
        (("jpeg", 4097), "size"),
        (("uint8", 12, 90), "only applies to form jpeg"),
        (("jpeg", 12, 0), "quality"),
        (("jpeg", 12, 101), "quality"),
    ],
)
def test_settings_out_of_range(fields, said):
    with pytest.raises(MapetError) as stop:
        Packing(*fields)
    assert said in one_line(stop)


def test_a_half_made_pack_takes_ids_and_labels_from_the_images(source, packs, tmp_path, caplog):
    folder = start(source, tmp_path / "pack", RAW)
    next(counts := pack(folder, source, RAW, max_bad_fraction=0.5))
    next(counts)
    for name in ("keys.txt", "labels.npy"):
        damaged = bytearray((folder / name).read_bytes())
        damaged[-3] ^= 1
        (folder / name).write_bytes(bytes(damaged))
    with caplog.at_level(logging.INFO, "mapet"):
        assert content(packed(source, folder, RAW)) == content(packs["uint8"])
    assert "keys.txt was damaged" in caplog.text
    assert "labels.npy was damaged" in caplog.text


@pytest.mark.parametrize("spoil", [lambda path: os.truncate(path, 99), lambda path: path.write_bytes(b"\x93NUMPY" * 9)])
def test_damaged_offsets_of_a_half_made_pack_are_one_line(source, tmp_path, spoil):
    folder = start(source, tmp_path / "pack", RAW)
    spoil(folder / "offsets.npy")
    for act in (lambda: list(pack(folder, source, RAW)), lambda: open_pack(folder)):
        with pytest.raises(MapetError, match="is damaged") as stop:
            act()
        assert one_line(stop)


def test_a_pack_begun_by_version_0_1_gets_its_hashes(source, packs, tmp_path):
    folder = start(source, tmp_path / "pack", JPEG)
    next(counts := pack(folder, source, JPEG, max_bad_fraction=0.5))
    next(counts)
    (folder / "sums.bin").unlink()
    assert content(packed(source, folder, JPEG)) == content(packs["jpeg"])
