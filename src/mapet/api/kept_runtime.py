"""Runtime settings that a folder keeps, because a resume without them could end otherwise."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from mapet.config.runtime import Runtime
from mapet.utils.errors import MapetError
from mapet.utils.io import replace_file

FILE = "runtime.json"
KEPT = (
    "max_bad_fraction",
    "micro_batch_size",
    "probe_every",
    "probe_data",
    "probe_images",
    "panel_every",
    "keep_best",
    "logger",
)
M = TypeVar("M", bound=Runtime)


def keep(runtime: Runtime, folder: Path) -> None:
    """Write the kept settings into the folder of a run or a comparison."""
    replace_file(
        folder / FILE,
        json.dumps({name: getattr(runtime, name) for name in KEPT if hasattr(runtime, name)}, indent=1) + "\n",
    )


def with_kept(runtime: M, folder: str | Path) -> M:
    """The settings with the micro-batch size that a run began with, unless they have one: sums are rounded alike."""
    size = runtime.micro_batch_size
    return replace(runtime, micro_batch_size=kept(folder, Runtime).micro_batch_size if size is None else size)


def kept(folder: str | Path, kind: type[M]) -> M:
    """The defaults of a resume: those of ``kind`` but for what the folder keeps.

    A file that is missing or unreadable must not block a resume: its settings are the defaults.
    """
    try:
        found: Any = json.loads((Path(folder).expanduser() / FILE).read_bytes())
        own = {one.name for one in fields(kind)}
        return replace(kind(), **{name: found[name] for name in KEPT if name in found and name in own})
    except (OSError, ValueError, TypeError, RecursionError, MapetError):
        return kind()
