"""A file for one process alone, until that process lets go or ends, however it ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO
from weakref import WeakSet

from mapet.errors import MapetError

try:
    import fcntl
except ImportError:  # a system without such locks
    fcntl = None  # type: ignore[assignment]

_ours: WeakSet[BinaryIO] = WeakSet()


def hold(file: IO[str] | IO[bytes], *, wait: bool) -> None:
    """Let no other process hold the open ``file`` until it is closed; nothing where the system has no such locks.

    Raises:
        BlockingIOError: another one holds it, and this one does not ``wait``.
    """
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError:  # this file system has none
            return


def locked(path: Path) -> BinaryIO:
    """The file ``path``, which no other process is given while this one is open; its content is left alone.

    A fork of this process does not have it: a worker that outlives this process keeps nothing locked.

    Raises:
        BlockingIOError: another one has it.
    """
    file = path.open("r+b")
    try:
        hold(file, wait=False)
    except BlockingIOError:
        file.close()
        raise
    _ours.add(file)
    return file


@contextmanager
def alone(path: Path, doing: str) -> Iterator[None]:
    """Keep ``path`` from all other processes meanwhile.

    Raises:
        MapetError: another one has it, which is ``doing`` something there.
    """
    try:
        file = locked(path)
    except BlockingIOError:
        raise MapetError(f"Another process is {doing} {path.parent}: let it end, or end it.") from None
    with file:
        yield


def _leave_to_parent() -> None:
    for file in _ours:
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
