"""Reading the files of a pack, and the error of damaged ones."""

import mmap
from pathlib import Path
from typing import Any

import numpy as np

from mapet.utils.errors import MapetError


def damaged(folder: Path, reason: object) -> MapetError:
    """The error of a damaged pack."""
    return MapetError(f"{folder} is damaged ({reason}): delete it and pack again, or restore it.")


def array(path: Path) -> Any:
    """A memory-mapped array; raises ValueError for whatever NumPy raises at a damaged header."""
    try:
        return np.load(path, mmap_mode="r")
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{path.name} is not an array") from error


def mapped(path: Path) -> mmap.mmap | bytes:
    """A file mapped into memory; an empty one as bytes."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
