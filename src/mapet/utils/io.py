"""Atomic and append-only file writing, and JSON reading with errors for the user."""

import errno
import json
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from mapet.utils.errors import MapetError, reason
from mapet.utils.lock import LOCK

FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk, or the user's share of it


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file in errors of writing it.

    Raises:
        MapetError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise MapetError(
                f"{path} could not be written: the disk is full. Free some space, then run the same command again, "
                "or with --resume what was begun."
            ) from error
        error.filename = str(path)  # not the temporary beside it
        raise


def replace_file(path: Path, content: bytes | str) -> None:
    """Write a file atomically: a reader, or a kill at any moment, finds the old content or the new one.

    Raises:
        MapetError: the disk is full, or NAME.part is a symbolic link; the old content stays.
    """
    part = path.with_name(path.name + ".part")
    if part.is_symlink():  # it would be followed
        raise MapetError(f"{part} is in the way: it is a symbolic link. Move it away.")
    try:
        with writing(path):
            _replace(path, part, content)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def _replace(path: Path, part: Path, content: bytes | str) -> None:
    if isinstance(content, str):
        content = content.encode(errors="backslashreplace")  # of names that are not UTF-8
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk; some file systems cannot do that for folders."""
    with suppress(PermissionError) if path.is_dir() else nullcontext():
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def load_json(path: Path) -> Any:
    """The content of a JSON file; None if there is no file, or an unreadable or damaged one."""
    with suppress(OSError, ValueError, RecursionError):
        return json.loads(path.read_bytes())
    return None


def write_from(path: Path, start: int, content: bytes) -> None:
    """Truncate the file to ``start`` bytes, append ``content``, and flush it to the disk.

    Raises:
        MapetError: the disk is full; nothing is appended.
    """
    new = not path.exists()
    with writing(path), path.open("wb" if new else "r+b", buffering=0) as file:
        file.truncate(start)
        file.seek(start)
        try:
            left = memoryview(content)
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(start)
            raise
    if new:
        sync(path.parent)


def require_folder(folder: str | Path, option: str) -> Path:
    """A given folder, which must be there.

    Raises:
        MapetError: it does not exist, or is a file; ``option`` names it.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise MapetError(f"{option} {folder} {'is a file' if path.exists() else 'does not exist'}: give a folder.")
    return path


def require_text(folder: Path) -> None:
    """Refuse a folder for weights whose path is not UTF-8: safetensors cannot open files there.

    Raises:
        MapetError: with the path.
    """
    name = str(folder.absolute()).encode(errors="backslashreplace").decode()
    if name != str(folder.absolute()):
        raise MapetError(f"{name} is not UTF-8, so weights in it could not be read: give another --out.")


def require_free(folder: Path, ours: Collection[str] = ()) -> None:
    """Require that ``folder`` is missing, empty, or holds nothing but the names ``ours`` and a lock.

    Raises:
        MapetError: it is a file, holds something else, or ``require_text`` refuses it.
    """
    require_text(folder)
    if folder.exists() and not folder.is_dir():
        raise MapetError(f"{folder} is a file: give another --out.")
    if other := sorted({path.name for path in folder.glob("*")} - {*ours, LOCK}):
        raise MapetError(f"{folder} is not empty (it holds {other[0]}): give another --out.")


def require_writable(out: str, option: str = "--out") -> None:
    """Refuse an output at once where nothing can be written.

    Raises:
        MapetError: it is empty, or below a file or a folder that cannot be written.
    """
    if not out.strip():
        raise MapetError(f"{option} is empty: give a path, or leave {option} away where it is not required.")
    above = next(path for path in Path(out).expanduser().absolute().parents if os.path.lexists(path))
    if not above.is_dir():
        raise MapetError(f"{option} {out} cannot be written: {above} is not a folder; give another.")
    if not os.access(above, os.W_OK):
        raise MapetError(f"{option} {out} cannot be written: there is no permission to write in {above}; give another.")


def is_drawn(path: Path) -> bool:
    """Whether a file is an SVG figure of mapet, by its mark."""
    with suppress(OSError), path.open("rb") as file:
        return b"<dc:title>mapet</dc:title>" in file.read(2000)
    return False


def require_replaceable(out: Path, overwrite: bool, ours: Callable[[Path], bool], option: str = "--out") -> None:
    """Require that a file does not exist, or that it may be overwritten and mapet wrote it.

    Args:
        out: the file.
        overwrite: whether it may be replaced.
        ours: whether mapet wrote it.
        option: what names the file, for the errors.

    Raises:
        MapetError: it is in the way.
    """
    require_writable(str(out), option)
    if not os.path.lexists(out):
        return
    if out.is_symlink():
        raise MapetError(f"{out} is a symbolic link, and is not replaced: give another {option}.")
    if not out.is_file() or not ours(out):
        raise MapetError(f"{out} exists, and mapet did not write it, so it is not replaced: give another {option}.")
    if not overwrite:
        raise MapetError(f"{out} exists: give another {option}, or replace it with --overwrite.")


def encode_id(image_id: str) -> bytes:
    """An image id as bytes; file names that are not valid UTF-8 survive."""
    return image_id.encode("utf-8", "surrogateescape")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        what: kind of its folder, for the errors: "a token store".

    Raises:
        MapetError: the file is missing or is not a JSON object.
    """
    try:
        fields = json.loads(path.read_bytes())
    except OSError:
        raise MapetError(f"{path.parent} is not {what}: it has no readable {path.name}.") from None
    except (ValueError, RecursionError) as error:
        raise MapetError(f"{path} is damaged ({reason(error)}): create {what} again or restore the file.") from None
    if not isinstance(fields, dict):
        raise MapetError(f"{path} is damaged (not an object): create {what} again or restore the file.")
    return fields
