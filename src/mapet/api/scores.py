"""The file of scores: a JSON list with one entry for each evaluation."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    from mapet.evals.score import Score


def entries(path: Path) -> list[dict[str, Any]]:
    """The entries of a file; none if there is no file.

    Raises:
        MapetError: the file holds something else.
    """
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_bytes()) if path.is_file() else None
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(one, dict) and "protocol" in one for one in found):
        raise MapetError(f"{path} is not a list of scores: move it away, or name another file.")
    return found


def write(path: Path, scores: Sequence[Mapping[str, Any]]) -> None:
    """Replace the entries of a file; its folder is made if need be, but not the one above."""
    from mapet.utils.io import replace_file

    path.parent.mkdir(exist_ok=True)
    replace_file(path, json.dumps(scores, indent=1) + "\n")


def append(path: Path, entry: Mapping[str, Any]) -> None:
    """Add one entry to a file; raises as ``entries``."""
    write(path, [*entries(path), entry])


def plain(scores: "Mapping[str, Score]") -> dict[str, dict[str, float | str]]:
    """Scores as JSON objects; empty notes are left out."""
    return {name: {key: value for key, value in vars(score).items() if value != ""} for name, score in scores.items()}
