"""A folder locked for one process alone."""

import errno
import os
import signal
from contextlib import suppress

import pytest

from mapet.utils import lock
from mapet.utils.errors import MapetError
from mapet.utils.lock import LOCK, Lock


def test_a_second_one_is_refused_until_the_first_lets_go(tmp_path):
    with Lock(tmp_path, "baking in"):
        with pytest.raises(MapetError) as refused:
            Lock(tmp_path, "baking in")
        assert str(refused.value).startswith(f"Another process is baking in {tmp_path} (process {os.getpid()} on ")
        assert str(refused.value).endswith("): let it end, or end it.")
    assert not (tmp_path / LOCK).exists()
    Lock(tmp_path, "baking in").release()


def test_a_folder_that_was_made_for_nothing_goes(tmp_path):
    for content in ([], ["bread"]):
        with Lock(tmp_path / "oven", "baking in"):
            for name in content:
                (tmp_path / "oven" / name).touch()
        assert (tmp_path / "oven").exists() == bool(content)


def test_what_a_killed_process_left_keeps_nobody_out(tmp_path):
    (tmp_path / LOCK).write_text("process 1 on elsewhere")
    with Lock(tmp_path, "baking in"), pytest.raises(MapetError, match=f"process {os.getpid()} on"):
        Lock(tmp_path, "baking in")


def test_a_lock_that_is_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    """The holder lets go between the opening and the locking of its file."""
    first, hold = Lock(tmp_path, "baking in"), lock.hold

    def late(file, *, wait):
        first.release()
        hold(file, wait=wait)

    monkeypatch.setattr(lock, "hold", late)
    with Lock(tmp_path, "baking in"):
        assert (tmp_path / LOCK).exists()
        with pytest.raises(MapetError):
            Lock(tmp_path, "baking in")


def test_letting_go_leaves_the_lock_of_another(tmp_path):
    """Whose folder took the place of the first one's."""
    first = Lock(tmp_path / "oven", "baking in")
    (tmp_path / "oven").rename(tmp_path / "old")
    with Lock(tmp_path / "oven", "baking in"):
        first.release()
        assert (tmp_path / "oven" / LOCK).exists()


def test_a_conflict_is_one_however_a_file_system_tells_it(tmp_path, monkeypatch):
    def denied(file, operation):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(lock.fcntl, "flock", denied)
    with pytest.raises(MapetError, match="Another process is baking in"):
        Lock(tmp_path, "baking in")


def test_without_locks_everybody_is_let_in(tmp_path, monkeypatch):
    def absent(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", absent)
    with Lock(tmp_path, "baking in"), Lock(tmp_path, "baking in"):
        pass
    monkeypatch.setattr(lock, "fcntl", None)
    with Lock(tmp_path, "baking in"), Lock(tmp_path, "baking in"):
        assert not (tmp_path / LOCK).exists()


def test_a_file_in_the_place_of_the_folder_is_for_others_to_tell(tmp_path):
    (tmp_path / "file").touch()
    with Lock(tmp_path / "file", "baking in"):
        pass
    assert (tmp_path / "file").is_file()


def test_a_fork_that_outlives_its_parent_keeps_nobody_out(tmp_path):
    held, (there, here) = Lock(tmp_path, "baking in"), os.pipe()
    child = os.fork()
    if not child:
        with suppress(BaseException):
            os.write(here, b".")
            signal.pause()
        os._exit(0)
    try:
        os.read(there, 1)
        with pytest.raises(MapetError):
            Lock(tmp_path, "baking in")
        held.release()
        Lock(tmp_path, "baking in").release()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
