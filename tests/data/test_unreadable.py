"""The ledger counts each key once, lists it, and stops above its max_fraction."""

from functools import partial
from pathlib import Path

import pytest

from mapet.data.unreadable import UnreadableImages, listed
from mapet.utils.errors import MapetError
from processes import Forked, finished


def test_each_key_is_counted_and_listed_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.tsv"
    bad = UnreadableImages(100, max_fraction=0.5, path=path)
    assert not path.exists()
    for key in ("a/b.jpg", "c\td.png", "a/b.jpg"):
        bad.add(key, "zero\nbytes")
    assert len(bad) == 2
    assert path.read_text() == "a/b.jpg\tzero bytes\nc\td.png\tzero bytes\n"


def test_a_reopened_list_is_known(tmp_path: Path) -> None:
    path = tmp_path / "bad.tsv"
    UnreadableImages(100, max_fraction=0.5, path=path).add("c\td.png", "zero bytes")
    again = UnreadableImages(100, max_fraction=0.5, path=path)
    again.add("c\td.png", "zero bytes")
    assert len(again) == 1
    again.add("e.png", "truncated")
    assert len(path.read_text().splitlines()) == 2


def test_processes_that_share_a_list_know_each_other_s(tmp_path: Path) -> None:
    path = tmp_path / "bad.tsv"
    one, two = (UnreadableImages(100, max_fraction=0.5, path=path) for _ in range(2))
    one.add("a.png", "zero bytes")
    two.add("b.png", "truncated")
    assert "a.png" in two
    one.add("b.png", "truncated")
    one.add("c.png", "truncated")
    assert len(one) == 3
    assert path.read_text() == "a.png\tzero bytes\nb.png\ttruncated\nc.png\ttruncated\n"


def test_a_list_is_written_by_one_process_at_a_time(tmp_path: Path) -> None:
    def work(first: int) -> None:
        bad = UnreadableImages(1000, max_fraction=1, path=tmp_path / "bad.tsv")
        for number in range(first, first + 200):
            bad.add(f"{number}.png", "truncated")

    finished([Forked(tmp_path, work=partial(work, first)) for first in (0, 100)])
    assert sorted(listed(tmp_path / "bad.tsv")) == sorted(f"{number}.png" for number in range(300))
    assert (tmp_path / "bad.tsv").read_text().count("\n") == 300


def test_names_of_any_bytes_are_listed(tmp_path: Path) -> None:
    key = b"\xff.png".decode("utf-8", "surrogateescape")
    UnreadableImages(10, max_fraction=1, path=tmp_path / "bad.tsv").add(key, "truncated")
    assert listed(tmp_path / "bad.tsv") == {key: "truncated"}


def test_it_stops_just_above_the_limit() -> None:
    bad = UnreadableImages(200, max_fraction=0.02)
    for number in range(4):
        bad.add(f"{number}.jpg", "truncated")
    with pytest.raises(MapetError) as stop:
        bad.add("4.jpg", "truncated")
    message = str(stop.value)
    assert "\n" not in message
    assert "5 of 200" in message
    assert "0.jpg (truncated)" in message
    assert "max_bad_fraction" in message


def test_a_list_above_the_limit_stops_again_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.tsv"
    UnreadableImages(10, max_fraction=0.1, path=path).add("a.jpg", "truncated")
    with pytest.raises(MapetError, match=str(path)):
        UnreadableImages(10, max_fraction=0.1, path=path).add("b.jpg", "truncated")
    with pytest.raises(MapetError):
        UnreadableImages(10, max_fraction=0.1, path=path).add("a.jpg", "truncated")


def test_limit_zero_stops_at_the_first() -> None:
    with pytest.raises(MapetError, match="1 of 1000"):
        UnreadableImages(1000, max_fraction=0).add("a.jpg", "truncated")
