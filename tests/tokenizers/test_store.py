import errno
import fcntl
import json
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mapet.tokenizers import parts
from mapet.tokenizers import store as store_module
from mapet.tokenizers.id_index import IdIndex, hashes
from mapet.tokenizers.parts import merge, part_of
from mapet.tokenizers.store import TokenStore
from mapet.utils.errors import MapetError
from mapet.utils.fingerprint import sealed
from mapet.utils.view import CenterCropResize
from peak import memory, reset_peak

WRITES = ((store_module, "write_from"), (parts, "rmtree"), (os, "unlink"), (os, "rmdir"), (os, "rename"))
SAME = {"view": CenterCropResize((64, 64)), "grid": (2, 3), "vocabulary": 65536, "tokenizer": "abc"}


def rows(count: int, seed: int = 0) -> Tensor:
    return torch.randint(65536, (count, 6), generator=torch.Generator().manual_seed(seed))


def names(count: int, start: int = 0) -> list[str]:
    return [f"folder/größe {number}.png" for number in range(start, start + count)]


def filled(folder: Path, count: int = 5) -> TokenStore:
    store = TokenStore.create(folder, **SAME)
    store.append(names(count), rows(count))
    return store


def test_gives_back_what_was_put_in(tmp_path: Path) -> None:
    store = TokenStore.create(tmp_path / "new" / "store", **SAME, extra={"source": "x"})
    store.append(names(3), rows(8)[:3])
    store.append(names(0), rows(0))
    store.append(names(5, 3), rows(8)[3:].to(torch.int32))
    for again in (store, TokenStore.open(store.folder), TokenStore.create(store.folder, **SAME, extra={"source": "x"})):
        assert len(again) == 8
        assert list(again.image_ids()) == names(8)
        assert torch.equal(again.gather(names(8)[::-1]), rows(8).flip(0))
        assert again[names(8)[4]].dtype == np.uint16
        assert again[names(8)[4]].tolist() == rows(8)[4].tolist()
        assert again.tokens.tolist() == rows(8).tolist()
        assert again.rows(names(8)[2:4]).tolist() == [2, 3]
        assert names(1)[0] in again
        assert "other" not in again
        assert (again.view, again.grid, again.vocabulary, again.tokenizer) == (
            CenterCropResize((64, 64)),
            (2, 3),
            65536,
            "abc",
        )
        assert again.extra == {"source": "x"}


def test_an_empty_store_is_a_store(tmp_path: Path) -> None:
    TokenStore.create(tmp_path, **SAME)
    store = TokenStore.open(tmp_path)
    assert (len(store), list(store.image_ids()), store.tokens.shape, "x" in store) == (0, [], (0, 6), False)


@pytest.mark.parametrize("file", ["tokens.bin", "keys.txt"])
def test_a_kill_leaves_whole_rows_and_the_rest_can_be_appended_again(tmp_path: Path, file: str) -> None:
    whole = (filled(tmp_path, 5).folder / file).read_bytes()
    other = "keys.txt" if file == "tokens.bin" else "tokens.bin"
    untouched = (tmp_path / other).read_bytes()
    for size in range(len(whole) + 1):
        (tmp_path / file).write_bytes(whole[:size])
        (tmp_path / other).write_bytes(untouched)
        complete = size // 12 if file == "tokens.bin" else whole[:size].count(b"\n")
        assert list(TokenStore.open(tmp_path).image_ids()) == names(complete)
        store = TokenStore.create(tmp_path, **SAME)
        assert torch.equal(store.gather(names(complete)), rows(5)[:complete])
        store.append(names(5 - complete, complete), rows(5)[complete:])
        assert torch.equal(TokenStore.open(tmp_path).gather(names(5)), rows(5))
        assert (tmp_path / file).read_bytes() == whole


def test_missing_files_are_an_empty_store(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "tokens.bin").unlink()
    store = TokenStore.create(tmp_path, **SAME)
    assert len(store) == 0
    store.append(names(2), rows(2))
    assert list(TokenStore.open(tmp_path).image_ids()) == names(2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"view": CenterCropResize((128, 128))}, "128"),
        ({"grid": (3, 2)}, r"\[2, 3\], not \[3, 2\]"),
        ({"vocabulary": 512}, "vocabulary 65536, not 512"),
        ({"tokenizer": "xyz"}, "tokenizer abc, not xyz"),
        ({"extra": {"source": "y"}}, "source None, not y"),
        ({"vocabulary": 65537}, "in 1 … 65536"),
    ],
)
def test_another_header_is_refused_with_both_sides(tmp_path: Path, change, words: str) -> None:
    filled(tmp_path)
    with pytest.raises(MapetError, match=words):
        TokenStore.create(tmp_path, **(SAME | change))


@pytest.mark.parametrize(
    ("keys", "tokens", "words"),
    [
        (names(1), rows(1), "already"),
        (["a", "b", "a"], rows(3), '"a" already'),
        (["a\nb"], rows(1), "line break"),
        (["a"], rows(2), r"\(1, 6\)"),
        (["a"], rows(1) + 65536, "0 to 65535"),
        (["a"], -1 - rows(1), "0 to 65535"),
    ],
)
def test_a_refused_append_changes_nothing(tmp_path: Path, keys, tokens, words: str) -> None:
    store = filled(tmp_path)
    before = [(tmp_path / file).read_bytes() for file in ("tokens.bin", "keys.txt")]
    with pytest.raises(MapetError, match=words):
        store.append(keys, tokens)
    assert before == [(tmp_path / file).read_bytes() for file in ("tokens.bin", "keys.txt")]
    assert len(store) == len(TokenStore.open(tmp_path)) == 5


def test_a_folder_that_is_no_store_is_explained(tmp_path: Path) -> None:
    with pytest.raises(MapetError, match="is not a token store"):
        TokenStore.open(tmp_path / "nothing")
    filled(tmp_path)
    header = (tmp_path / "store.json").read_text()
    for text in ("", "{", "[]", "{}", header.replace("grid", "gird"), header.replace("tokens 2", "tokens 9")):
        (tmp_path / "store.json").write_text(text)
        with pytest.raises(MapetError, match="damaged") as caught:
            TokenStore.open(tmp_path)
        assert "\n" not in str(caught.value)
    (tmp_path / "store.json").unlink()
    with pytest.raises(MapetError, match=r"without store\.json"):
        TokenStore.create(tmp_path, **SAME)


def test_a_doubled_line_in_the_keys_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    (tmp_path / "keys.txt").write_text("a\na\n")
    with pytest.raises(MapetError, match=r"twice \(line 2\)"):
        TokenStore.open(tmp_path)


def test_check_names_both_sides(tmp_path: Path) -> None:
    store = filled(tmp_path)
    fit = {"source_name": "images", "image_ids": names(5), "view": CenterCropResize((32, 32)), "grid": (2, 3)}
    store.check(**fit)
    for change, words in (
        (
            {"view": CenterCropResize((32, 48))},
            "bicubic view of 64x64 pixels, but the student uses a bicubic view of 32x48",
        ),
        ({"view": CenterCropResize((64, 64), "bilinear")}, "bicubic view .* bilinear view"),
        ({"grid": (4, 4)}, r"grid \(2, 3\), the student \(4, 4\)"),
        ({"image_ids": [*names(5), "new", "newer"]}, '2 of the 7 images of images, for instance "new"'),
    ):
        with pytest.raises(MapetError, match=words):
            store.check(**(fit | change))
    with pytest.raises(MapetError, match='1 of 2 images, for instance "new"'):
        store.rows([names(1)[0], "new"])


def test_file_names_that_are_not_unicode_survive(tmp_path: Path) -> None:
    key = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    store = TokenStore.create(tmp_path, **SAME)
    store.append([key, "carriage\rreturn"], rows(2))
    again = TokenStore.open(tmp_path)
    assert list(again.image_ids()) == [key, "carriage\rreturn"]
    assert again[key].tolist() == rows(2)[0].tolist()


def test_a_million_pictures_take_few_bytes_each(tmp_path: Path) -> None:
    """300,000 here: the index is two numbers an image, tokens stay on the disk, and keys are no objects."""
    count, step = 300_000, 30_000
    filled(tmp_path, 0)
    (tmp_path / "tokens.bin").write_bytes(bytes(count * 12))
    ids = list(map("folder/{:09d}.png".format, range(count)))
    (tmp_path / "keys.txt").write_text("".join(f"{one}\n" for one in ids))
    hashed = np.zeros((count, 2), "<u8")
    hashed[:, 0] = hashes(map(str.encode, ids))
    (tmp_path / "sums.bin").write_bytes(hashed.tobytes())
    del ids, hashed
    before = reset_peak()
    store = TokenStore.open(tmp_path)
    assert (memory("VmHWM") - before) / count < 130  # an object each would take more
    for start in range(0, 2 * count, step):
        missing = store.missing(list(map("folder/{:09d}.png".format, range(start, start + step))))
        assert missing.all() == missing.any() == (start >= count)
    before = reset_peak()
    keys = map("folder/{:09d}.png".format, range(count))
    store.check(source_name="images", image_ids=keys, view=CenterCropResize((32, 32)), grid=(2, 3))
    assert (memory("VmHWM") - before) / count < 60


def test_parts_become_rows_of_the_store_once(tmp_path: Path) -> None:
    store = filled(tmp_path, 5)
    part_of(store, 0).append(names(3, 5), rows(11)[5:8])
    part_of(store, 1).append(names(3, 8), rows(11)[8:])
    merge(store)
    store.release()
    assert torch.equal(TokenStore.open(tmp_path).gather(names(11))[5:], rows(11)[5:])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keys.txt", "store.json", "sums.bin", "tokens.bin"]
    merge(store)
    assert len(TokenStore.open(tmp_path)) == 11


@pytest.mark.parametrize("moment", range(1, 22))
def test_a_merge_that_is_killed_anywhere_is_completed_by_the_next(tmp_path: Path, moment: int, monkeypatch) -> None:
    """Killed at its nth write, removal or renaming: then no image is missing or doubled."""
    calls, plain = [], {name: getattr(module, name) for module, name in WRITES}

    def mortal(name: str):
        def call(*arguments, **options):
            calls.append(name)
            if len(calls) == moment:
                raise KeyboardInterrupt
            return plain[name](*arguments, **options)

        return call

    store = filled(tmp_path, 2)
    for rank, start in enumerate((2, 5)):
        part_of(store, rank).append(names(3, start), rows(8)[start : start + 3])
    with monkeypatch.context() as broken:
        broken.setattr(parts, "ROWS", 2)
        for module, name in WRITES:
            broken.setattr(module, name, mortal(name))
        with suppress(KeyboardInterrupt):
            merge(store)
    store.release()  # as the end of its process does
    again = TokenStore.create(tmp_path, **SAME)
    merge(again)
    found = TokenStore.open(tmp_path)
    assert sorted(found.image_ids()) == sorted(names(8))
    assert torch.equal(found.gather(names(8))[2:], rows(8)[2:])
    assert not list(tmp_path.glob("parts*"))


def test_a_second_writer_is_refused_while_the_first_is_there(tmp_path: Path) -> None:
    first, second = filled(tmp_path, 2), TokenStore.create(tmp_path, **SAME)
    with pytest.raises(MapetError, match=r"Another process is writing tokens into .*: wait for it or stop it"):
        second.append(names(1, 5), rows(1))
    first.append(names(1, 2), rows(3)[2:])
    assert len(TokenStore.open(tmp_path)) == 3
    first.release()
    with pytest.raises(MapetError, match=r"has written into .* in the meantime: run the same command again"):
        second.append(names(1, 5), rows(1))
    assert torch.equal(TokenStore.open(tmp_path).gather(names(3)), rows(3))
    second.release()
    TokenStore.create(tmp_path, **SAME).append(names(1, 5), rows(1))


def test_what_a_network_file_system_holds_open_goes_with_the_next_merge(tmp_path: Path, monkeypatch) -> None:
    store, unlink = filled(tmp_path / "store", 2), os.unlink
    part_of(store, 0).append(names(2, 2), rows(4)[2:])

    def busy(path, *, dir_fd=None):
        if dir_fd is not None:  # as rmtree calls it
            raise OSError(errno.EBUSY, "busy", path)
        unlink(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", busy)
        merge(store)
    assert list(store.image_ids()) == names(4)
    assert (store.folder / parts.MERGED).is_dir()
    merge(store)
    assert not (store.folder / parts.MERGED).exists()
    assert list(store.image_ids()) == names(4)


def test_a_part_that_is_still_written_is_not_merged(tmp_path: Path) -> None:
    store = filled(tmp_path, 2)
    part = part_of(store, 1)
    part.append(names(1, 2), rows(1))
    with pytest.raises(MapetError, match="Another process is writing"):
        merge(store)
    part.append(names(1, 3), rows(1))
    part.release()
    merge(store)
    assert sorted(TokenStore.open(tmp_path).image_ids()) == names(4)


def test_without_locks_what_others_wrote_is_still_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", absent)
    first, second = filled(tmp_path, 2), TokenStore.create(tmp_path, **SAME)
    second.append(names(1, 5), rows(1))
    with pytest.raises(MapetError, match="in the meantime"):
        first.append(names(1, 2), rows(1))


def test_a_part_of_other_tokens_is_refused(tmp_path: Path) -> None:
    store = filled(tmp_path, 2)
    part = part_of(store, 0)
    path = part.folder / "store.json"
    path.write_text(json.dumps(sealed({**json.loads(path.read_text()), "tokenizer": "xyz"})))
    with pytest.raises(MapetError, match="tokenizer xyz, not abc"):
        merge(store)


def test_the_index_finds_every_key_after_any_sequence_of_additions() -> None:
    index, keys = IdIndex(), names(300)
    for size in (1, 0, 99, 200):
        batch = keys[len(index) : len(index) + size]
        assert index.add([key.encode() for key in batch]) is None
    assert index.find(keys).tolist() == list(range(300))
    assert index.find(["x", *keys[:2]]).tolist() == [-1, 0, 1]
    assert index.add([b"fresh", keys[7].encode()]) == 1
    assert len(index) == 300


def test_the_header_is_json(tmp_path: Path) -> None:
    filled(tmp_path)
    assert json.loads((tmp_path / "store.json").read_text())["grid"] == [2, 3]


def test_what_else_lies_among_the_parts_is_left_alone(tmp_path: Path) -> None:
    store = filled(tmp_path / "store")
    part_of(store, 1).append(names(2, 5), rows(2, seed=1))
    (store.folder / "parts" / ".DS_Store").touch()
    (store.folder / "parts" / "2").mkdir()  # of a process that was killed before it wrote its header
    merge(store)
    assert len(store) == 7
    assert not list(store.folder.glob("parts*"))


def test_a_header_without_patches_is_damaged(tmp_path: Path) -> None:
    header = filled(tmp_path / "store").folder / "store.json"
    header.write_text(header.read_text().replace("[\n    2,\n    3\n  ]", "[0, 0]"))
    assert "[0, 0]" in header.read_text()
    with pytest.raises(MapetError, match="damaged"):
        TokenStore.open(tmp_path / "store")


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    for name in ("tokens.bin", "sums.bin", "keys.txt", "store.json"):
        content = (tmp_path / name).read_bytes()
        for position in range(len(content)):
            for bit in (0, 2, 5):
                changed = bytearray(content)
                changed[position] ^= 1 << bit
                (tmp_path / name).write_bytes(bytes(changed))
                with suppress(MapetError):
                    store = TokenStore.open(tmp_path)
                    assert torch.equal(store.gather(names(3)), rows(3)), (name, position, bit)
                    assert (store.vocabulary, store.grid, store.view) == (65536, (2, 3), SAME["view"])
        (tmp_path / name).write_bytes(content)


def test_a_damaged_row_is_named_when_it_is_read_and_others_are_not(tmp_path: Path) -> None:
    filled(tmp_path)
    content = bytearray((tmp_path / "tokens.bin").read_bytes())
    content[3 * 12 + 4] ^= 1
    (tmp_path / "tokens.bin").write_bytes(bytes(content))
    store = TokenStore.open(tmp_path)
    assert torch.equal(store.gather(names(3)), rows(5)[:3])
    with pytest.raises(MapetError, match=r'damaged: row 3, of the image "folder/größe 3.png", has tokens'):
        store.gather(names(5)[::-1])


def as_version_0_1(folder: Path) -> None:
    """Without hashes."""
    path = folder / "store.json"
    header = json.loads(path.read_text())
    del header["fingerprint"]
    path.write_text(json.dumps({**header, "format": "mapet tokens 1"}))
    (folder / "sums.bin").unlink()


def test_a_store_of_version_0_1_is_read_and_the_next_append_adds_hashes(tmp_path: Path) -> None:
    filled(tmp_path)
    whole = {name: (tmp_path / name).read_bytes() for name in ("sums.bin", "store.json", "tokens.bin")}
    as_version_0_1(tmp_path)
    store = TokenStore.create(tmp_path, **SAME)
    assert not store.verified
    assert torch.equal(store.gather(names(5)), rows(5))
    store.append(names(1, 5), rows(6)[5:])
    store.release()
    again = TokenStore.open(tmp_path)
    assert again.verified
    assert torch.equal(again.gather(names(6)), torch.cat([rows(5), rows(6)[5:]]))
    assert (tmp_path / "sums.bin").read_bytes()[:-16] == whole["sums.bin"]
    assert (tmp_path / "store.json").read_bytes() == whole["store.json"]


def test_a_token_outside_the_vocabulary_is_named_without_hashes_too(tmp_path: Path) -> None:
    store = TokenStore.create(tmp_path, **{**SAME, "vocabulary": 9})
    store.append(names(2), rows(2) % 9)
    store.release()
    as_version_0_1(tmp_path)
    content = bytearray((tmp_path / "tokens.bin").read_bytes())
    content[12 + 5] = 1
    (tmp_path / "tokens.bin").write_bytes(bytes(content))
    token = 256 + int(rows(2)[1, 2]) % 9
    with pytest.raises(MapetError, match=f'größe 1.png", has the token {token} at patch 2, and its vocabulary is 9'):
        TokenStore.open(tmp_path).gather(names(2))
