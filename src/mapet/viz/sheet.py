"""A contact sheet: images with one line of text each."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mapet.utils.view import CenterCropResize
from mapet.viz.figures import DPI, blank, write

if TYPE_CHECKING:
    from PIL import Image

INCHES, LONGEST = 1.5, 24  # of a tile; characters of a line below it
PIXELS = round(INCHES * DPI)


def contact_sheet(tiles: "Sequence[tuple[str, str, Image.Image | None]]", out: Path, columns: int = 6) -> Path:
    """Draw tiles from left to right and top to bottom.

    Args:
        tiles: a title, a line below the image, of which the end is shown, and the image, of which the centred square
            is shown; None leaves the tile grey.
        out: PNG or SVG file to write, atomically; its folder is created.
        columns: tiles in a row.
    """
    rows, columns = -(-len(tiles) // columns), min(columns, len(tiles))
    figure = blank(INCHES * columns, (INCHES + 0.35) * rows)
    view = CenterCropResize((PIXELS, PIXELS))
    for axes in np.atleast_1d(figure.subplots(rows, columns)).flat:
        axes.set_axis_off()
    for axes, (title, line, image) in zip(figure.axes, tiles, strict=False):
        axes.imshow(np.full((1, 1, 3), 200, np.uint8) if image is None else np.asarray(view(image)))
        axes.set_title(title, fontsize=8, parse_math=False)
        end = line if len(line) <= LONGEST else f"…{line[1 - LONGEST :]}"
        axes.text(0.5, -0.03, end, fontsize=6, ha="center", va="top", transform=axes.transAxes, parse_math=False)
    return write(figure, out)
