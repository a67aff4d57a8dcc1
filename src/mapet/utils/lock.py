"""An exclusive lock on a folder, released when its process ends, however it ends."""

import os
from contextlib import suppress
from pathlib import Path
from socket import gethostname
from typing import Self

from mapet.utils.errors import MapetError

LOCK = ".lock"  # a separate file, as files with content are replaced and read by others
RETRY = 0.2  # seconds; a holder that releases during an attempt makes it fail


class Lock:
    """Keeps other processes that ask for it out of a folder until ``release``.

    A missing folder is created, and removed again if it is still empty at release. The file ``.lock`` names the holder;
    a killed process leaves the file behind, but not the lock. Forked workers do not inherit the lock. Where the folder
    cannot be written or its file system has no locks, everybody is let in.

    Args:
        folder: to be locked.
        activity: what the holder does in the folder, for the error: "training in".

    Raises:
        MapetError: another process holds the lock.
    """

    def __init__(self, folder: Path, activity: str) -> None:
        from filelock import FileLock, Timeout

        self.path, self._created = folder / LOCK, not folder.exists()
        self._lock = FileLock(self.path, timeout=RETRY, thread_local=False)
        with suppress(OSError):
            try:
                self._lock.acquire()
            except Timeout:
                raise MapetError(
                    f"Another process is {activity} {folder}{_holder(self.path)}: wait for it or stop it."
                ) from None
            self._file = self.path.stat()
            if type(self._lock) is FileLock:  # else it fell back to a soft lock, which writes its own text
                self.path.write_text(f"process {os.getpid()} on {gethostname()}")

    def release(self) -> None:
        """Let others in. Calling it again does nothing."""
        if not self._lock.is_locked:
            return
        with suppress(OSError):  # the folder may have been moved and another one be in its position
            if os.path.samestat(self._file, self.path.stat()):
                self.path.unlink()
        self._lock.release()
        if self._created:
            with suppress(OSError):  # not empty
                self.path.parent.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def is_locked(folder: Path) -> bool:
    """Whether another process holds the lock of a folder."""
    from filelock import FileLock, Timeout

    if not (folder / LOCK).is_file():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # nobody can lock there
        return False


def _holder(path: Path) -> str:
    """`` (process N on HOST)``; empty where a locked file cannot be read."""
    with suppress(OSError, ValueError):
        return f" ({path.read_text()})"
    return ""
