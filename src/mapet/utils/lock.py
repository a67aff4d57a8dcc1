"""A folder for one process alone, until that process lets go or ends, however it ends."""

import os
from contextlib import suppress
from pathlib import Path
from socket import gethostname
from typing import IO, Self
from weakref import WeakSet

from mapet.utils.errors import MapetError

try:
    import fcntl
except ImportError:  # a system without such locks
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"  # a file of its own: those with content are replaced, and read by others

_ours: WeakSet[IO[bytes]] = WeakSet()


def hold(file: IO[bytes], *, wait: bool) -> None:
    """Let no other process hold the open ``file`` until it is closed; nothing where the system has no such locks.

    Raises:
        BlockingIOError: another one holds it, and this one does not ``wait``.
    """
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):  # the latter on some network file systems
        raise BlockingIOError from None
    except OSError:  # this file system has none
        return


class Lock:
    """Keeps the other processes that ask for it out of a folder until ``release``.

    A folder that is not there is made, and removed again when nothing has come into it. The file ``.lock`` says who
    holds it; where a process ended without a word the file stays, and keeps nobody out. A fork of this process does not
    have the lock, so neither does a worker that outlives this process.

    Raises:
        MapetError: another process has it, which is ``doing`` something in the folder.
    """

    def __init__(self, folder: Path, doing: str) -> None:
        self.path, self._made = folder / LOCK, not folder.exists()
        self._file = _held(self.path, doing) if fcntl is not None else None

    def release(self) -> None:
        """Let others in; a second time does nothing."""
        if self._file is not None and not self._file.closed:
            if _is_at(self._file, self.path):
                self.path.unlink()
            self._file.close()
            if self._made:
                with suppress(OSError):  # it is not empty
                    self.path.parent.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def _held(path: Path, doing: str) -> IO[bytes] | None:
    """The lock's file; None where nothing can be written, which whoever writes next is told. Raises as ``Lock``."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+b")
        except OSError:
            return None
        try:
            hold(file, wait=False)
        except BlockingIOError:
            with file:
                who = _holder(file)
            raise MapetError(f"Another process is {doing} {path.parent}{who}: let it end, or end it.") from None
        if _is_at(file, path):  # and was not removed by its holder in between
            break
        file.close()
    file.truncate(0)
    file.write(f"process {os.getpid()} on {gethostname()}".encode())
    file.flush()
    _ours.add(file)
    return file


def _holder(file: IO[bytes]) -> str:
    try:
        file.seek(0)
        return f" ({file.read().decode()})"
    except OSError:  # some file systems let nobody else read what is locked
        return ""


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _leave_to_parent() -> None:
    for file in _ours:
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
