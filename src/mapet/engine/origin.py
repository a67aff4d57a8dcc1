"""What a checkpoint says of the run that it belongs to: its settings, and the hash of its metrics.

Settings that are paths are left out, as folders may be moved; so are those that only one recipe has, as versions add
some.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from mapet.engine.checkpoint import Checkpoint
from mapet.utils.errors import MapetError
from mapet.utils.fingerprint import file_hash
from mapet.utils.io import load_json, replace_file

RECIPE, CLASSIFIER, METRICS = "recipe.yaml", "classifier.json", "metrics.csv"
RAISED, RAISED_SETTING = "epochs.json", f"{RECIPE}: optimization.epochs"  # the epochs that a run had before
SEGMENTER = "segmenter.json"
PATHS = {"data", "tokens", "init", "from", "path", "teacher", "teacher_weights"}


def settings(folder: Path) -> dict[str, Any]:
    """The settings in a run's folder, by ``FILE: NAME``; none of a file that is missing or unreadable."""
    found: dict[str, Any] = {}
    for name in (RECIPE, CLASSIFIER, SEGMENTER):
        with suppress(OSError):
            stat = (folder / name).stat()
            found |= _parsed(folder / name, stat.st_mtime_ns, stat.st_size, stat.st_ino)
    return found


def metrics_seal(folder: Path) -> str:
    """Size and hash of the metrics so far; empty without any."""
    path = folder / METRICS
    return f"{path.stat().st_size} {file_hash(path)}" if path.is_file() else ""


def require_same(path: Path, folder: Path) -> None:
    """Require that a checkpoint belongs to the run in a folder; those of version 0.1 do not say.

    Raises:
        MapetError: its settings are others.
    """
    here = settings(folder)
    for name, value in Checkpoint(path).settings.items():
        file, _, setting = name.partition(": ")
        if name == RAISED_SETTING and value in earlier_epochs(folder):
            continue
        if name in here:
            same, now = json.dumps(here[name]) == json.dumps(value), _short(here[name])
        else:
            same, now = file == RECIPE or not (folder / file).is_file(), "none"
        if not same:
            raise MapetError(
                f"{path} does not belong to {folder / file}: it was trained with {setting} {_short(value)}, not "
                f"{now}. Restore the one that was changed, or begin a new run."
            )


def earlier_epochs(folder: Path) -> list[float]:
    """The numbers of epochs that were raised in the run's folder."""
    found = load_json(folder / RAISED)
    return [value for value in found if isinstance(value, int | float)] if isinstance(found, list) else []


def note_raised(folder: Path, epochs: float) -> None:
    """Keep the number of epochs that is about to be raised: checkpoints with it still belong to the run."""
    replace_file(folder / RAISED, json.dumps([*earlier_epochs(folder), epochs]) + "\n")


@lru_cache(maxsize=8)
def _parsed(path: Path, *_: int) -> dict[str, Any]:
    """The settings of one file; the other arguments change when it does."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text) if path.name == RECIPE else json.loads(text)
        plain = json.loads(json.dumps(content, default=str))
    except (OSError, yaml.YAMLError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return {}  # who needs it says so
    return {f"{path.name}: {name}": value for name, value in _flat(plain)} if isinstance(plain, dict) else {}


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif name not in PATHS and not (isinstance(value, str) and ("/" in value or "\\" in value)):
            yield f"{prefix}{name}", value


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 60 else f"{text[:57]}..."
