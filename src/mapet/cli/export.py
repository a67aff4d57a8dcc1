"""``mapet export``: an encoder for other libraries."""

from dataclasses import dataclass
from pathlib import Path

from mapet.cli.options import parse, say
from mapet.errors import MapetError, nearest

TARGETS = ("timm",)


@dataclass(frozen=True)
class Options:
    """Options of ``mapet export RUN``."""

    to: str = "timm"
    """Library to write for: timm."""
    out: str | None = None
    """Folder to write; None: RUN/export/timm."""
    overwrite: bool = False
    """Replace an earlier export there."""


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

    say(f"{folder} holds the encoder; load it by\n\n{loading_lines(folder)}")
    return 0


def export(run: Path, out: Path, *, overwrite: bool = False) -> Path:
    """Write the encoder of a run's last checkpoint so that ``timm.create_model("local-dir:OUT")`` loads it.

    Raises:
        MapetError: no run or checkpoint, or a folder in use.
    """
    from mapet.assemble import load_encoder
    from mapet.data.augment import IMAGENET_MEAN, IMAGENET_STD
    from mapet.interop.timm import to_timm

    encoder, recipe, step = load_encoder(run)
    o = recipe.objective
    notes = {"objective": o.objective, "mask ratio": o.mask_ratio, "data": recipe.data, "steps": step}
    return to_timm(encoder, out, mean=IMAGENET_MEAN, std=IMAGENET_STD, notes=notes, overwrite=overwrite)
