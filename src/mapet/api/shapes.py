"""Compose a segmentation set from images with alpha and photographs."""

from pathlib import Path
from typing import Any

from mapet.config.flat import updated
from mapet.config.segmentation import ShapesSettings


def shapes(
    shapes: str | Path,
    photographs: str | Path,
    out: str | Path,
    *,
    settings: ShapesSettings | None = None,
    **changes: Any,
) -> Path:
    """Compose a segmentation set in ADE20K's layout: cut-out images over photographs, classes by folder.

    Label 1 is the background, labels 2 … the classes; a cut-out image or photograph appears in one split only. The same
    files and settings give the same images.

    Args:
        shapes: folder whose sub-folders are classes; their images have an alpha channel.
        photographs: folder of images, nested in any way.
        out: new or empty folder; ``images/training``, ``annotations/training``, …, and ``classes.txt``.
        settings: the defaults, without any.
        changes: settings by name, for instance ``classes=5``.

    Returns:
        The folder.

    Raises:
        MapetError: too few classes or photographs, a photograph that cannot be read, or files in ``out``.
    """
    from dataclasses import asdict

    from mapet.data.shapes import compose_shapes
    from mapet.utils.owned import require_apart

    require_apart(out, shapes=shapes, photographs=photographs)
    s = updated(settings or ShapesSettings(), **changes)
    return compose_shapes(shapes, photographs, out, **asdict(s))
