"""Which checkpoint of a run is read: the last one, or after damage the newest valid one."""

import os
from contextlib import suppress
from pathlib import Path

from mapet.engine.checkpoint import BEFORE, INDEX, Checkpoint, exists
from mapet.utils.errors import MapetError
from mapet.utils.io import load_json
from mapet.utils.log import log

LAST, PREVIOUS, SHARDED = "last.safetensors", "previous.safetensors", "last"  # the third, a folder, has both
_faults: dict[tuple[tuple[str, int, int, int], ...], str] = {}  # by the files' state; "" is a valid checkpoint


def fault(path: Path) -> str:
    """Why a checkpoint cannot be used; empty if it is valid. It is read once as long as its files do not change."""
    state = _state(path)
    if state not in _faults:
        try:
            Checkpoint(path).verify()
            _faults[state] = ""
        except MapetError as error:
            _faults[state] = error.option_text
    return _faults[state]


def trust(path: Path) -> None:
    """Take a checkpoint file that this process has just written for valid."""
    _faults[_state(path)] = ""


def newest(folder: Path) -> Path:
    """The last checkpoint in a run's ``checkpoints``; after damage the newest valid one, which is logged.

    Returns:
        Its file or folder; ``last.safetensors`` if there is no checkpoint at all.

    Raises:
        MapetError: all checkpoints are damaged.
    """
    last = [path for path in (folder / LAST, folder / SHARDED) if exists(path)]
    faults = {path: fault(path) for path in last}
    if valid := [path for path in last if not faults[path]]:
        return _latest(valid)
    before = [path for path in (folder / PREVIOUS, folder / SHARDED / BEFORE) if exists(path)]
    others = [*before, *(path for path in sorted(folder.glob("step-????????*")) if exists(path))]
    if not last and not before:
        return folder / LAST
    if not (found := [path for path in others if not fault(path)]):
        raise MapetError(faults[last[0]] if last else fault(others[0]))
    chosen = _latest(found)
    _log_once(chosen, last[0] if last else folder / LAST, damaged=bool(last))
    return chosen


def rotate(folder: Path) -> bool:
    """Make the last checkpoint the previous one, unless it is damaged. Returns whether it did."""
    last = folder / LAST
    valid = last.is_file() and not fault(last)
    if valid:
        os.replace(last, folder / PREVIOUS)
    return valid


def require_valid(path: Path) -> None:
    """Require that a checkpoint is not damaged.

    Raises:
        MapetError: it is.
    """
    if text := fault(path):
        raise MapetError(text)


def _latest(paths: list[Path]) -> Path:
    return paths[0] if len(paths) == 1 else max(paths, key=lambda path: Checkpoint(path).step)


_logged: set[tuple[Path, Path]] = set()


def _log_once(chosen: Path, last: Path, *, damaged: bool) -> None:
    if (chosen, last) not in _logged:
        _logged.add((chosen, last))
        what = "is damaged" if damaged else "is missing"
        name = chosen.relative_to(last.parent)
        log.info(f"note      {last} {what}: {name} of step {Checkpoint(chosen).step} is used instead")


def _state(path: Path) -> tuple[tuple[str, int, int, int], ...]:
    """What changes when the files of a checkpoint change; renaming keeps it."""
    index = path / INDEX if path.is_dir() else path
    named = load_json(index) if index.suffix == ".json" else None
    names = named.get("files") if isinstance(named, dict) else None
    files = [index, *(index.parent / str(name) for name in (names if isinstance(names, list) else ()))]
    found = []
    for file in files:
        with suppress(OSError):
            stat = file.stat()
            found.append((str(stat.st_dev), stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return tuple(found)
