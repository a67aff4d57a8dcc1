"""A contact sheet: images with one line of text each, as a PNG file."""

import warnings
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mapet.utils.io import replace_file
from mapet.utils.view import CenterCropResize
from mapet.viz.figures import blank

if TYPE_CHECKING:
    from PIL import Image

INCHES, PIXELS, LONGEST = 1.5, 144, 24  # of a tile; characters of a line below it
WRITTEN_BY = {"Software": "mapet"}  # in the file's text


def contact_sheet(tiles: "Sequence[tuple[str, str, Image.Image | None]]", out: Path, columns: int = 6) -> Path:
    """Draw tiles from left to right and top to bottom.

    Args:
        tiles: a title, a line below the image, of which the end is shown, and the image, of which the centred square
            is shown; None leaves the tile grey.
        out: PNG file to write, atomically; its folder is created.
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
    content = BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name in letters that the font lacks
        figure.savefig(content, dpi=100, format="png", metadata=WRITTEN_BY)
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, content.getvalue())
    return out


def is_sheet(path: Path) -> bool:
    """Whether ``contact_sheet`` wrote the file."""
    from PIL import Image, UnidentifiedImageError

    with suppress(OSError, ValueError, SyntaxError, UnidentifiedImageError), Image.open(path) as image:
        return image.format == "PNG" and WRITTEN_BY.items() <= image.info.items()
    return False
