"""A folder locked by one process."""

import errno
import fcntl
import os
import signal
from contextlib import suppress

import pytest

from mapet.utils.errors import MapetError
from mapet.utils.lock import LOCK, Lock, is_locked


def test_a_second_one_is_refused_until_release(tmp_path):
    with Lock(tmp_path, "baking in"):
        with pytest.raises(MapetError) as refused:
            Lock(tmp_path, "baking in")
        assert str(refused.value).startswith(f"Another process is baking in {tmp_path} (process {os.getpid()} on ")
        assert str(refused.value).endswith("): wait for it or stop it.")
    assert not (tmp_path / LOCK).exists()
    Lock(tmp_path, "baking in").release()


def test_a_created_folder_that_stays_empty_is_removed(tmp_path):
    for content in ([], ["bread"]):
        with Lock(tmp_path / "oven", "baking in"):
            for name in content:
                (tmp_path / "oven" / name).touch()
        assert (tmp_path / "oven").exists() == bool(content)


def test_the_file_of_a_killed_process_does_not_lock(tmp_path):
    (tmp_path / LOCK).write_text("process 1 on elsewhere")
    with Lock(tmp_path, "baking in"), pytest.raises(MapetError, match=f"process {os.getpid()} on"):
        Lock(tmp_path, "baking in")


def test_a_lock_that_is_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    """The holder releases between the opening and the locking of its file."""
    first, attempt = Lock(tmp_path, "baking in"), fcntl.flock

    def late(descriptor, operation):
        if operation & fcntl.LOCK_EX:
            first.release()
        return attempt(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with Lock(tmp_path, "baking in"):
        assert (tmp_path / LOCK).exists()
        with pytest.raises(MapetError):
            Lock(tmp_path, "baking in")


def test_release_keeps_the_lock_file_of_another(tmp_path):
    """The other folder took the path of the first one."""
    first = Lock(tmp_path / "oven", "baking in")
    (tmp_path / "oven").rename(tmp_path / "old")
    with Lock(tmp_path / "oven", "baking in"):
        first.release()
        assert (tmp_path / "oven" / LOCK).exists()


def test_without_locks_everybody_is_let_in(tmp_path, monkeypatch):
    def absent(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", absent)
    with Lock(tmp_path, "baking in"), Lock(tmp_path, "baking in"):
        pass


def test_a_folder_that_cannot_be_written_is_not_locked(tmp_path, monkeypatch):
    def denied(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", denied)  # a superuser may write anywhere
    with Lock(tmp_path, "baking in"), Lock(tmp_path, "baking in"):
        assert not (tmp_path / LOCK).exists()


def test_a_file_instead_of_a_folder_is_not_locked(tmp_path):
    (tmp_path / "file").touch()
    with Lock(tmp_path / "file", "baking in"):
        pass
    assert (tmp_path / "file").is_file()


def test_a_fork_that_outlives_its_parent_does_not_hold_the_lock(tmp_path):
    held, (there, here) = Lock(tmp_path, "baking in"), os.pipe()
    child = os.fork()
    if not child:
        with suppress(BaseException):
            held.release()  # does nothing in a fork
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


def test_a_folder_is_locked_while_somebody_holds_it(tmp_path):
    assert not is_locked(tmp_path)
    (tmp_path / LOCK).write_text("process 1 on elsewhere")
    assert not is_locked(tmp_path)
    with Lock(tmp_path, "baking in"):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)


def test_a_folder_where_nobody_can_lock_is_not_locked(tmp_path, monkeypatch):
    def refused(descriptor, operation):
        raise OSError(errno.EIO, "no locks")

    (tmp_path / LOCK).touch()
    monkeypatch.setattr(fcntl, "flock", refused)
    assert not is_locked(tmp_path)
