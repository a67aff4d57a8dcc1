"""The loss curve of a run, and what all figures share: their look, their files, and how these are known again."""

import csv
import os
import warnings
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mapet.utils.errors import MapetError, reason
from mapet.utils.io import is_drawn, replace_file, require_replaceable
from mapet.utils.log import log
from mapet.utils.owned import require_outside

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")  # of figures
DPI = 200  # dots per inch of PNG files
WRITTEN_BY: dict[str, dict[str, str | None]] = {  # in the file
    ".png": {"Software": "mapet"},
    ".svg": {"Creator": "mapet", "Date": None},
}
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#6E6E6E"  # safe for colour-blind readers (Okabe and Ito 2008)


def loss_curve(metrics_csv: Path, out: Path, chance: float | None = None) -> Path:
    """Plot loss and, if recorded, token accuracy over steps: a light line with its running mean on top.

    Args:
        metrics_csv: CSV file with columns ``step``, ``loss`` and, optionally, ``epoch`` and ``accuracy``.
        out: PNG file to write; an SVG file is written beside it.
        chance: accuracy of a guess without looking at the image, drawn as a dashed line.

    Raises:
        MapetError: the file is missing, has no rows, or lacks ``step`` or ``loss``.
    """
    return save(loss_figure(read_columns(Path(metrics_csv)), chance), out)


def loss_figure(columns: "dict[str, NDArray[np.float64]]", chance: float | None = None) -> "Figure":
    """As ``loss_curve``, of columns as ``read_columns`` gives them."""
    panels = {"loss": "loss (nats per token)", "accuracy": "token accuracy (%)"}
    shown = [name for name in panels if name in columns and not np.isnan(columns[name]).all()]
    figure = blank(4.6 * len(shown), 3.4)
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(shown))), shown, strict=True):
        unit = 100 if name == "accuracy" else 1
        _curve(axes, columns["step"], unit * columns[name])
        if name == "accuracy" and chance is not None:
            axes.axhline(unit * chance, color=GREY, linestyle="--", linewidth=1.2, label="guess by position")
        axes.set(xlabel=_step_label(columns), ylabel=panels[name])
        axes.legend(frameon=False)
        plain(axes)
    return figure


def read_columns(path: Path) -> dict[str, NDArray[np.float64]]:
    """The columns of a file of metrics by name; empty or non-numeric cells become NaN.

    Raises:
        MapetError: the file is missing, has no rows, or lacks ``step`` or ``loss``.
    """
    if not path.is_file():
        raise MapetError(f"There is no metrics file {path}; give the metrics.csv of a run folder.")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MapetError(f"{path} cannot be read: {reason(error)}.") from error
    if not rows or not {"step", "loss"} <= rows[0].keys():
        raise MapetError(f"{path} has no rows with step and loss; give the metrics.csv of a run.")
    return {name: np.array([_number(row[name]) for row in rows]) for name in rows[0] if name}


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


def _curve(axes: "Axes", step: NDArray[np.float64], values: NDArray[np.float64]) -> None:
    single = len(step) == 1
    axes.plot(step, values, color=BLUE, alpha=0.25, linewidth=0.8, marker="o" if single else None)
    window = smoothing(len(step))
    label = "each step" if window == 1 else f"mean of {window} steps"
    axes.plot(step, running_mean(values, window), color=BLUE, linewidth=1.6, label=label)


def smoothing(count: int) -> int:
    """Steps of the running mean of so many: about a 25th of them, odd."""
    return 1 + 2 * (count // 50)


def running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return the (N,) centred running mean over ``window`` (odd) values, fewer at the ends; ignores NaN."""
    is_valid = ~np.isnan(values)
    kernel = np.ones(window)
    sums, counts = (
        np.convolve(part, kernel)[window // 2 :][: len(values)] for part in (np.where(is_valid, values, 0), is_valid)
    )
    means: NDArray[np.float64] = np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0.5)
    return means


def _step_label(columns: dict[str, NDArray[np.float64]]) -> str:
    epochs = columns.get("epoch", np.array([np.nan]))[-1]
    return "step" if np.isnan(epochs) else f"step ({epochs:g} epoch{'s' if epochs != 1 else ''} in all)"


def plain(axes: "Axes") -> None:
    """Leave out the frame above and on the right."""
    axes.spines[["top", "right"]].set_visible(False)


def blank(width: float, height: float) -> "Figure":
    """Return an empty figure of this size in inches, without pyplot: no window and no global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: "Figure", out: Path) -> Path:
    """Write the figure as the PNG file ``out`` and as an SVG file beside it, without frames; returns ``out``.

    An SVG file of that name that is not mapet's stays, which is logged.
    """
    for axes in figure.axes:
        plain(axes)
    drawing = Path(out).with_suffix(".svg")
    if drawing.exists() and not is_drawn(drawing):
        log.info(f"note      {drawing} stays: mapet did not write it")
    else:
        write(figure, drawing)
    return write(figure, Path(out).with_suffix(".png"))


def write(figure: "Figure", out: Path) -> Path:
    """Write one file, whose suffix says PNG or SVG, atomically; its folder is created."""
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, encoded(figure, out.suffix))
    return out


def encoded(figure: "Figure", suffix: str) -> bytes:
    """The content of a file ``.png`` or ``.svg``, with mapet's mark; the same bytes for the same values."""
    from matplotlib import rc_context

    content = BytesIO()
    with warnings.catch_warnings(), rc_context({"svg.hashsalt": "mapet", "svg.fonttype": "path"}):
        warnings.filterwarnings("ignore", "Glyph")  # a name in letters that the font lacks
        figure.savefig(content, dpi=DPI, format=suffix[1:], metadata=WRITTEN_BY[suffix])
    return content.getvalue()


def is_figure(path: Path) -> bool:
    """Whether ``write`` wrote the file."""
    from PIL import Image, UnidentifiedImageError

    if path.suffix == ".svg":
        return is_drawn(path)
    with suppress(OSError, ValueError, SyntaxError, UnidentifiedImageError), Image.open(path) as image:
        return image.format == "PNG" and WRITTEN_BY[".png"].items() <= image.info.items()
    return False


def figure_file(out: str | Path, overwrite: bool, option: str = "--out", images: object = None) -> Path:
    """The file of a figure, which may be written.

    Args:
        out: the file.
        overwrite: whether an earlier figure may be replaced.
        option: what names the file, for the errors.
        images: what is drawn; a path of a folder must not hold the file.

    Raises:
        MapetError: another suffix, a foreign file in the way, or an earlier figure without ``overwrite``.
    """
    path = Path(out).expanduser()
    if path.suffix not in SUFFIXES:
        raise MapetError(f"{option} must end in .png or .svg, got {path}.")
    require_replaceable(path, overwrite, is_figure, option)
    if isinstance(images, str | Path):
        require_outside(path, images, option=option)
    part = path.with_name(f"{path.name}.part")  # where it is written first
    if os.path.lexists(part):
        raise MapetError(f"{part} is in the way: move it away, or give another {option}.")
    return path
