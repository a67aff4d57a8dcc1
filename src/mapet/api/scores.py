"""The file of scores: a JSON list, an entry for each evaluation, which every evaluation adds to."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mapet.utils.errors import MapetError


def entries(path: Path) -> list[dict[str, Any]]:
    """The scores that a file holds already; none where there is no file.

    Raises:
        MapetError: it holds something else.
    """
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_bytes()) if path.is_file() else None
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(one, dict) and "protocol" in one for one in found):
        raise MapetError(f"{path} is no list of scores: move it away, or name another file.")
    return found


def write(path: Path, scores: Sequence[Mapping[str, Any]]) -> None:
    """All scores, in the place of those that were there; the folder is made if need be."""
    from mapet.utils.io import replace_file

    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(scores, indent=1) + "\n")
