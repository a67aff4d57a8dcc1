"""Files that appear whole or not at all, files that grow, and JSON that is readable or explained."""

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mapet.utils.errors import MapetError
from mapet.utils.lock import LOCK


def replace_file(path: Path, content: bytes | str) -> None:
    """Write ``content`` so that a reader, or a kill at any moment, finds the old file or the new one."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def write_from(path: Path, start: int, content: bytes) -> None:
    """Cut the file at ``start``, add ``content``, and wait for the disk."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.truncate(start)
        file.seek(start)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def require_free(folder: Path, ours: Collection[str] = ()) -> None:
    """Refuse a folder for results that is a file, or holds something other than ``ours`` and a lock.

    Raises:
        MapetError: with what it holds.
    """
    if folder.exists() and not folder.is_dir():
        raise MapetError(f"{folder} is a file: give another --out.")
    if other := sorted({path.name for path in folder.glob("*")} - {*ours, LOCK}):
        raise MapetError(f"{folder} is not empty (it holds {other[0]}): give another --out.")


def encoded(key: str) -> bytes:
    """An image's key as bytes; file names that are not valid UTF-8 survive."""
    return key.encode("utf-8", "surrogateescape")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object that a JSON file holds; ``what`` names the folder's kind in the errors.

    Raises:
        MapetError: the file is missing or is not a JSON object.
    """
    try:
        fields = json.loads(path.read_bytes())
    except OSError:
        raise MapetError(f"{path.parent} is not {what}: it has no readable {path.name}.") from None
    except ValueError as error:
        raise MapetError(f"{path} is damaged ({error}): make {what} anew or restore the file.") from None
    if not isinstance(fields, dict):
        raise MapetError(f"{path} is damaged (not an object): make {what} anew or restore the file.")
    return fields
