"""``mapet export``: an encoder, a classifier or a segmentation model for other libraries."""

from dataclasses import dataclass

from mapet.api.export import export, loading_text
from mapet.cli.output import made
from mapet.cli.probe import parse_from, require_from


@dataclass(frozen=True)
class Options:
    """Options of ``mapet export``."""

    run: str = ""
    """FROM: a run or export folder, an official-format checkpoint, or a timm model; may come first, without --run."""
    to: str = "timm"
    """Formats, with commas: timm (with transformers; always written but for a segmentation model), onnx, torch."""
    out: str | None = None
    """Folder to write; None: export/timm in the run's folder, or export/segmenter."""
    num_heads: int | None = None
    """Attention heads of a checkpoint file, which does not store them; None: width / 64."""
    overwrite: bool = False
    """Replace an earlier export; only files that mapet wrote are deleted."""
    push: str | None = None
    """Upload to this private repository, USER/NAME, of the Hugging Face Hub; None: nothing is sent."""


def command(arguments: list[str]) -> int:
    """Parse, export, print how to load."""
    o = parse_from(
        Options(),
        arguments,
        "export",
        "Write the encoder, classifier or segmentation model of FROM for other libraries.",
    )
    require_from(o.run, "export")
    found = made(export(o.run, o.out, o.to, o.overwrite, num_heads=o.num_heads, push=o.push))
    print(loading_text(found))
    return 0
