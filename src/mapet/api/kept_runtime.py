"""Runtime settings that a folder keeps, because a resume without them could end otherwise."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from mapet.config.runtime import Runtime
from mapet.utils.errors import MapetError
from mapet.utils.io import replace_file

FILE = "runtime.json"
KEPT = ("max_bad_fraction", "micro_batch_size")


def keep(runtime: Runtime, folder: Path) -> None:
    """Write the kept settings into the folder of a run or a comparison."""
    replace_file(folder / FILE, json.dumps({name: getattr(runtime, name) for name in KEPT}, indent=1) + "\n")


def with_kept(runtime: Runtime, folder: str | Path) -> Runtime:
    """The settings with the micro-batch size that a run began with, unless they have one: sums are rounded alike."""
    size = runtime.micro_batch_size
    return replace(runtime, micro_batch_size=kept(folder).micro_batch_size if size is None else size)


def kept(folder: str | Path) -> Runtime:
    """The defaults of a resume: those of ``Runtime`` but for what the folder keeps.

    A file that is missing or unreadable must not block a resume: its settings are the defaults.
    """
    try:
        found: Any = json.loads((Path(folder).expanduser() / FILE).read_bytes())
        return replace(Runtime(), **{name: found[name] for name in KEPT if name in found})
    except (OSError, ValueError, TypeError, RecursionError, MapetError):
        return Runtime()
