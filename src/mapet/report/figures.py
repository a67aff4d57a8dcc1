"""Pictures of a run as PNG files: is it learning, and what do its tokens stand for?"""

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from mapet.errors import MapetError
from mapet.hashing import fraction, hashed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = (
    "#0072B2",
    "#D55E00",
    "#6E6E6E",
)  # told apart by colour-blind readers (Okabe and Ito 2008)
LABEL = 1.2  # inches beside a row of patches
PAPER = 255  # what lies outside a picture
CODES, EXAMPLES, COLOURS = 1, 2, 3  # salts: independent streams of chance


def loss_curve(metrics_csv: Path, out: Path, chance: float | None = None) -> Path:
    """Loss and, where there is one, token accuracy over the steps: a light line, and its running mean on top.

    Args:
        metrics_csv: a header with ``step`` and ``loss``, and perhaps ``epoch`` and ``accuracy``.
        out: the PNG file to write.
        chance: accuracy of a guess, for instance the share of the most frequent token, drawn as a dashed line.

    Raises:
        MapetError: no such file, no rows, or no ``step`` or ``loss`` in them.
    """
    columns = _read(Path(metrics_csv))
    panels = {"loss": "loss (nats per token)", "accuracy": "token accuracy (%)"}
    shown = [name for name in panels if name in columns and not np.isnan(columns[name]).all()]
    figure = _figure(4.6 * len(shown), 3.4)
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(shown))), shown, strict=True):
        unit = 100 if name == "accuracy" else 1
        _curve(axes, columns["step"], unit * columns[name])
        if name == "accuracy" and chance is not None:
            axes.axhline(unit * chance, color=GREY, linestyle="--", linewidth=1.2, label="chance")
        axes.set(xlabel=_step_label(columns), ylabel=panels[name])
        axes.legend(frameon=False)
    return _save(figure, out)


def _read(path: Path) -> dict[str, NDArray[np.float64]]:
    """The columns of a CSV file; what is empty or no number becomes NaN."""
    if not path.is_file():
        raise MapetError(f"There is no metrics file {path}: give the metrics.csv of a run folder.")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"step", "loss"} <= rows[0].keys():
        raise MapetError(f"{path} has no rows with step and loss: give the metrics.csv of a run with steps.")
    return {name: np.array([_number(row[name]) for row in rows]) for name in rows[0] if name}


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


def _curve(axes: "Axes", step: NDArray[np.float64], values: NDArray[np.float64]) -> None:
    single = len(step) == 1
    axes.plot(step, values, color=BLUE, alpha=0.25, linewidth=0.8, marker="o" if single else None)
    window = 1 + 2 * (len(step) // 50)
    label = "each step" if window == 1 else f"mean of {window} steps"
    axes.plot(step, _running_mean(values, window), color=BLUE, linewidth=1.6, label=label)


def _running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """The mean of the ``window`` (odd) of (N,) values about each place, fewer at the ends; NaN counts as absent."""
    known = ~np.isnan(values)
    kernel = np.ones(window)
    sums, counts = (
        np.convolve(part, kernel)[window // 2 :][: len(values)] for part in (np.where(known, values, 0), known)
    )
    means: NDArray[np.float64] = np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0.5)
    return means


def _step_label(columns: dict[str, NDArray[np.float64]]) -> str:
    epochs = columns.get("epoch", np.array([np.nan]))[-1]
    return "step" if np.isnan(epochs) else f"step ({epochs:g} epoch{'s' if epochs != 1 else ''} in all)"


def code_patches(
    pictures: ArrayLike,
    tokens: ArrayLike,
    grid: tuple[int, int],
    out: Path,
    *,
    codes: int = 8,
    examples: int = 12,
    seed: int = 0,
) -> Path:
    """What some codes stand for: a row of patches of each, outlined, with the eight patches around them.

    Args:
        pictures: (N, 3, H, W) uint8.
        tokens: (N, L) integers, the code of every patch, row by row.
        grid: rows and columns of patches.
        out: the PNG file to write.
        codes: rows, drawn at random from the codes in use.
        examples: patches a row, drawn at random from those of its code.
        seed: of both draws.

    Raises:
        MapetError: pictures, tokens and grid that do not fit one another.
    """
    pixels, places = _fitting(pictures, tokens, grid)
    rows = np.sort(_draw(np.unique(places), codes, CODES, seed))
    patch = np.array([pixels.shape[2] // grid[0], pixels.shape[3] // grid[1]], dtype=np.int64)
    pitch = 3 * patch + np.maximum(1, patch // 3)  # a tile of three by three patches, and a gap
    canvas = np.full((*(pitch * (len(rows), examples)), 3), PAPER, dtype=np.uint8)
    corners, labels = [], []
    for row, code in enumerate(rows):
        found = np.argwhere(places == code)
        chosen = found[_draw(np.arange(len(found)), examples, EXAMPLES, seed, int(code))]
        for column, (picture, place) in enumerate(chosen):
            top, left = corner = pitch * (row, column)
            tile = _surroundings(pixels[picture], divmod(int(place), grid[1]), patch)
            canvas[top : top + 3 * patch[0], left : left + 3 * patch[1]] = tile
            corners.append(corner + patch)
        labels.append(f"code {code}\n{len(found):,} patches")
    return _save(_mosaic(canvas, pitch, corners, patch, labels), out)


def _draw(items: NDArray[np.int64], count: int, *keys: int) -> NDArray[np.int64]:
    """``count`` of the items, or all if there are fewer, as the keys will have it."""
    chosen = hashed(*keys, torch.from_numpy(items)).argsort()[:count]
    drawn: NDArray[np.int64] = items[chosen.numpy()]
    return drawn


def _surroundings(picture: NDArray[np.uint8], place: tuple[int, int], patch: NDArray[np.int64]) -> NDArray[np.uint8]:
    """(3, H, W) → (3 · height, 3 · width, 3): a patch amid its eight neighbours, white beyond the picture."""
    (height, width), (top, left) = patch, patch * place
    frame = ((0, 0), (height, height), (width, width))
    padded = np.pad(picture, frame, constant_values=PAPER)
    return padded[:, top : top + 3 * height, left : left + 3 * width].transpose(1, 2, 0)


def _mosaic(
    canvas: NDArray[np.uint8],
    pitch: NDArray[np.int64],
    corners: list[NDArray[np.int64]],
    patch: NDArray[np.int64],
    labels: list[str],
) -> "Figure":
    """The canvas with a label a row and a frame at each corner, white in black to be seen on any picture."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    height, width = 0.8 / pitch.min() * np.array(canvas.shape[:2])  # inches
    figure = _figure(LABEL + width, height)
    figure.set_layout_engine("none")
    axes = figure.add_axes((LABEL / (LABEL + width), 0, width / (LABEL + width), 1))
    axes.imshow(canvas, interpolation="nearest")
    frames = [Rectangle((left - 0.5, top - 0.5), patch[1], patch[0]) for top, left in corners]
    stroke = withStroke(linewidth=2.2, foreground="black")
    axes.add_collection(
        PatchCollection(frames, facecolor="none", edgecolor="white", linewidth=0.9, path_effects=[stroke])
    )
    axes.set_yticks(pitch[0] * np.arange(len(labels)) + 1.5 * patch[0] - 0.5, labels)
    axes.set_xticks([])
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    return figure


def token_map(pictures: ArrayLike, tokens: ArrayLike, grid: tuple[int, int], out: Path, *, count: int = 4) -> Path:
    """The first ``count`` pictures, and below each the map of its tokens: one colour a code, the same in every figure.

    Arguments and errors as ``code_patches``.
    """
    pixels, places = _fitting(pictures, tokens, grid)
    shown = min(count, len(pixels))
    aspect = pixels.shape[2] / pixels.shape[3]
    figure = _figure(2.0 * shown + 0.3, 2 * (2.0 * aspect) + 0.2)
    panels = figure.subplots(2, shown, squeeze=False)
    for (above, below), picture, codes in zip(panels.T, pixels, places, strict=False):
        above.imshow(picture.transpose(1, 2, 0), interpolation="nearest", aspect="auto")
        below.imshow(_colours(codes.reshape(grid)), interpolation="nearest", aspect="auto")
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
        axes.set_box_aspect(aspect)
        axes.spines[:].set_visible(False)
    panels[0, 0].set_ylabel("picture")
    panels[1, 0].set_ylabel(f"tokens, {grid[0]} × {grid[1]}")
    return _save(figure, out)


def _colours(codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """(h, w) → (h, w, 3) in [0, 1]: hue, strength and brightness of each code by chance; codes differ as greys too."""
    from matplotlib.colors import hsv_to_rgb

    chance = fraction(COLOURS, torch.from_numpy(codes)[..., None], torch.arange(3)).numpy()
    return hsv_to_rgb(chance * (1, 0.6, 0.65) + (0, 0.35, 0.35))


def _fitting(
    pictures: ArrayLike, tokens: ArrayLike, grid: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    pixels, places = np.asarray(pictures), np.asarray(tokens)
    fits = (
        pixels.ndim == 4
        and pixels.shape[1] == 3
        and not any(side % cells for side, cells in zip(pixels.shape[2:], grid, strict=True))
        and places.shape == (len(pixels), grid[0] * grid[1])
        and len(pixels) > 0
    )
    if not fits:
        raise MapetError(
            f"Pictures {pixels.shape}, tokens {places.shape} and a grid of {grid} do not fit one another: "
            f"expected (N, 3, H, W) and (N, {grid[0] * grid[1]}), the grid dividing H and W."
        )
    return pixels, places.astype(np.int64)


def _figure(width: float, height: float) -> "Figure":
    """A figure of its own, in inches: no window and no global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: "Figure", out: Path) -> Path:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=100, format="png")
    return Path(out)
