"""A file locked for one process alone."""

import os
import signal

import pytest

from mapet.lock import locked


def test_a_second_one_is_refused_until_the_first_is_closed(tmp_path):
    (path := tmp_path / "file").touch()
    first = locked(path)
    with pytest.raises(BlockingIOError):
        locked(path)
    first.close()
    locked(path).close()


def test_a_fork_that_outlives_its_parent_keeps_nothing_locked(tmp_path):
    (path := tmp_path / "file").touch()
    held, (there, here) = locked(path), os.pipe()
    child = os.fork()
    if not child:
        os.write(here, b".")
        signal.pause()
    os.read(there, 1)
    with pytest.raises(BlockingIOError):
        locked(path)
    held.close()
    locked(path).close()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
