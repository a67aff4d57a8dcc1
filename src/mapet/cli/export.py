"""``mapet export``: an encoder for other libraries."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.cli.options import parse
from mapet.utils.errors import MapetError, nearest
from mapet.utils.log import say

if TYPE_CHECKING:
    pass
from mapet.api.export import _fine_tuned, export

TARGETS = ("timm",)


@dataclass(frozen=True)
class Options:
    """Options of ``mapet export RUN``."""

    to: str = "timm"
    """Library to write for: timm."""
    out: str | None = None
    """Folder to write; None: RUN/export/timm."""
    overwrite: bool = False
    """Replace an earlier export there; nothing but files of mapet is deleted."""


def command(arguments: list[str]) -> int:
    """Parse, write, show how to load."""
    values = [arguments[i + 1] for i, word in enumerate(arguments[:-1]) if word in ("--to", "--out")]
    named = [word for word in arguments if not word.startswith("-") and word not in values][:1]
    rest = [word for word in arguments if word not in named]
    o = parse(Options(), rest, "export RUN", "Write the encoder of the run folder RUN for timm.")
    if not named:
        raise MapetError("mapet export needs the folder of a run: mapet export RUN --to timm.")
    if o.to not in TARGETS:
        raise MapetError(f'Cannot export to "{o.to}".{nearest(o.to, TARGETS)}')
    run = Path(named[0])
    folder = export(run, Path(o.out) if o.out else run / "export" / o.to, overwrite=o.overwrite)
    from mapet.interop.timm import loading_lines

    classifies = _fine_tuned(run)
    what = "classifier" if classifies else "encoder"
    say(f"{folder} holds the {what}; load it by\n\n{loading_lines(folder, classifies=classifies)}")
    return 0
