"""A file for one process alone, until that process lets go or ends, however it ends."""

from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # a system without such locks
    fcntl = None  # type: ignore[assignment]


def locked(path: Path) -> BinaryIO:
    """The file ``path``, which no other process is given while this one is open; its content is left alone.

    Where the system or the file system knows no locks, the file is merely open.

    Raises:
        BlockingIOError: another one has it.
    """
    file = path.open("r+b")
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise
        except OSError:  # this file system has none
            return file
    return file
