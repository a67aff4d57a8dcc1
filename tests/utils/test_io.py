"""Files are written whole or not at all, and what is not ours is in the way."""

import errno
import os

import pytest

from mapet.utils import io
from mapet.utils.errors import MapetError
from mapet.utils.io import load_json, read_json, replace_file, require_folder, require_free, require_replaceable, sync
from mapet.utils.lock import LOCK


def opened():
    return len(os.listdir("/dev/fd"))


def test_nothing_stays_open(tmp_path):
    before = opened()
    for number in range(8):
        replace_file(tmp_path / "a", f"{number}")
        io.write_from(tmp_path / "b", number, b"x")
        sync(tmp_path)
    assert opened() == before
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_bytes()) == ("7", b"xxxxxxxx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_only_of_a_folder_a_flush_may_be_denied(tmp_path, monkeypatch):
    def denied(number):
        raise PermissionError(errno.EPERM, "denied")

    (tmp_path / "a").touch()
    monkeypatch.setattr(os, "fsync", denied)
    sync(tmp_path)
    with pytest.raises(PermissionError):
        sync(tmp_path / "a")


@pytest.mark.parametrize("number", io.FULL)
def test_a_full_disk_keeps_the_old_content(tmp_path, monkeypatch, number):
    replace_file(tmp_path / "a", "old")
    io.write_from(tmp_path / "b", 0, b"old")

    def full(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    for write in (lambda: replace_file(tmp_path / "a", "new"), lambda: io.write_from(tmp_path / "b", 3, b"new")):
        with pytest.raises(MapetError, match="the disk is full"):
            write()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old", "b": "old"}


def test_appending_cuts_what_is_behind_the_start(tmp_path):
    for start, content, whole in ((0, b"12345", b"12345"), (3, b"ab", b"123ab"), (4, b"", b"123a")):
        io.write_from(tmp_path / "rows", start, content)
        assert (tmp_path / "rows").read_bytes() == whole


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000], ids=["empty", "cut", "bytes", "deep"])
def test_json_that_cannot_be_read(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    assert load_json(tmp_path / "a.json") is None
    assert load_json(tmp_path / "none.json") is None
    with pytest.raises(MapetError, match=r"a.json is damaged \(.*create a store again"):
        read_json(tmp_path / "a.json", "a store")
    with pytest.raises(MapetError, match=r"is not a store: it has no readable none\.json"):
        read_json(tmp_path / "none.json", "a store")


def test_json_that_is_no_object(tmp_path):
    (tmp_path / "a.json").write_text('[1, "a"]')
    assert load_json(tmp_path / "a.json") == [1, "a"]
    with pytest.raises(MapetError, match="not an object"):
        read_json(tmp_path / "a.json", "a store")
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "a.json", "a store") == {"a": 1}


def test_a_given_folder_must_be_there(tmp_path):
    (tmp_path / "a").touch()
    assert require_folder(str(tmp_path), "--data") == tmp_path
    with pytest.raises(MapetError, match="a is a file: give a folder"):
        require_folder(tmp_path / "a", "--data")
    with pytest.raises(MapetError, match="b does not exist: give a folder"):
        require_folder(tmp_path / "b", "--data")


def test_a_folder_is_free_with_nothing_but_our_names_and_a_lock(tmp_path):
    folder = tmp_path / "out"
    require_free(folder)
    folder.mkdir()
    (folder / LOCK).touch()
    require_free(folder)
    (folder / "ours").touch()
    require_free(folder, ["ours"])
    with pytest.raises(MapetError, match=r"is not empty \(it holds ours\)"):
        require_free(folder)
    (folder / "another").touch()
    with pytest.raises(MapetError, match=r"is not empty \(it holds another\)"):
        require_free(folder, ["ours"])
    with pytest.raises(MapetError, match="is a file"):
        require_free(folder / "ours")


def test_a_file_is_replaced_if_it_is_ours_and_that_was_asked_for(tmp_path):
    out = tmp_path / "a"
    require_replaceable(out, False, lambda path: False)
    out.touch()
    require_replaceable(out, True, lambda path: True)
    with pytest.raises(MapetError, match="replace it with overwrite"):
        require_replaceable(out, False, lambda path: True)
    with pytest.raises(MapetError, match="did not write it"):
        require_replaceable(out, True, lambda path: False)
    (tmp_path / "link").symlink_to(out)
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    for path, why in (("link", "symbolic link"), ("nowhere", "symbolic link"), ("", "did not write it")):
        with pytest.raises(MapetError, match=why):
            require_replaceable(tmp_path / path, True, lambda path: True)
