"""Images of a tokenizer as PNG files: what its codes stand for, where they lie in images, how often they occur."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from mapet.utils.errors import MapetError
from mapet.utils.rng import random_bits, uniform
from mapet.viz.figures import BLUE, GREY, ORANGE, blank, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABEL = 1.2  # inches beside a row of patches
PAPER, BEYOND = 255, 232  # greys between the tiles, and in a tile where its image ends
CODES, EXAMPLES, COLOURS = 1, 2, 3  # salts: independent streams of chance

Pixels = NDArray[np.uint8]
Pair = NDArray[np.int64]  # of pixels or places: down, across


@dataclass(frozen=True)
class Row:
    """Patches under one label: of each of the images (n, 3, H, W) uint8 one, ``places`` (n,) counted row by row."""

    label: str
    images: Pixels
    places: Sequence[int]


def patch_rows(
    rows: Iterable[Row],
    grid: tuple[int, int],
    size: tuple[int, int],
    out: Path,
    *,
    examples: int,
    reach: int = 1,
    inches: float = 0.8,
) -> Path:
    """Rows of outlined patches, each amid its surroundings; the rows' images are needed one row at a time.

    Args:
        rows: at least one; a row without images stays white.
        grid: rows and columns of patches in an image.
        size: H and W of all images, multiples of the grid.
        out: the PNG file to write.
        examples: patches a row at most.
        reach: patches shown on each side of the outlined one.
        inches: size of the shorter side of one patch with its surroundings.
    """
    patch = np.array([size[0] // grid[0], size[1] // grid[1]], dtype=np.int64)
    side = (1 + 2 * reach) * patch
    pitch = side + np.maximum(1, patch // 3)  # and a gap
    strips, corners, labels = [], [], []
    for number, row in enumerate(rows):
        strip = np.full((pitch[0], pitch[1] * examples, 3), PAPER, dtype=np.uint8)
        for column, (image, place) in enumerate(zip(row.images, row.places, strict=True)):
            left = column * pitch[1]
            strip[: side[0], left : left + side[1]] = _surroundings(image, divmod(place, grid[1]), patch, reach)
            corners.append(pitch * (number, column) + reach * patch)
        strips.append(strip)
        labels.append(row.label)
    return save(_mosaic(np.concatenate(strips), pitch, side, corners, patch, labels, inches), out)


def code_patches(
    images: ArrayLike,
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
        images: (N, 3, H, W) uint8.
        tokens: (N, L) integers, the code of every patch, row by row.
        grid: rows and columns of patches.
        out: the PNG file to write.
        codes: rows, drawn at random from the codes in use.
        examples: patches a row, drawn at random from those of its code.
        seed: of both draws.

    Raises:
        MapetError: images, tokens and grid that do not fit one another.
    """
    pixels, places = _fitting(images, tokens, grid)

    def rows() -> Iterator[Row]:
        for code in np.sort(_draw(np.unique(places), codes, CODES, seed)):
            found = np.argwhere(places == code)
            chosen = found[_draw(np.arange(len(found)), examples, EXAMPLES, seed, int(code))]
            yield Row(code_label(int(code), len(found)), pixels[chosen[:, 0]], chosen[:, 1].tolist())

    return patch_rows(rows(), grid, pixels.shape[2:], out, examples=examples)


def code_label(code: int, patches: int) -> str:
    """What stands beside a row of a code's patches."""
    return f"code {code}\n{patches:,} patches"


def _draw(items: NDArray[np.int64], count: int, *keys: int) -> NDArray[np.int64]:
    """``count`` of the (n,) items, or all if there are fewer, as the keys will have it."""
    chosen = random_bits(*keys, torch.from_numpy(items)).argsort()[:count]
    drawn: NDArray[np.int64] = items[chosen.numpy()]
    return drawn


def _surroundings(image: Pixels, place: tuple[int, int], patch: Pair, reach: int) -> Pixels:
    """(3, H, W) → (height, width, 3): a patch and ``reach`` more on every side, light grey beyond the image."""
    (above, beside), (top, left) = reach * patch, patch * place
    padded = np.pad(image, ((0, 0), (above, above), (beside, beside)), constant_values=BEYOND)
    height, width = (1 + 2 * reach) * patch
    return padded[:, top : top + height, left : left + width].transpose(1, 2, 0)


def _mosaic(
    canvas: Pixels, pitch: Pair, side: Pair, corners: list[Pair], patch: Pair, labels: list[str], inches: float
) -> "Figure":
    """The canvas with a label a row and a frame at each corner, white in black to be seen on any image."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    height, width = inches / pitch.min() * np.array(canvas.shape[:2])
    figure = blank(LABEL + width, height)
    figure.set_layout_engine("none")
    axes = figure.add_axes((LABEL / (LABEL + width), 0, width / (LABEL + width), 1))
    axes.imshow(canvas, interpolation="nearest")
    frames = [Rectangle((left - 0.5, top - 0.5), patch[1], patch[0]) for top, left in corners]
    stroke = withStroke(linewidth=2.2, foreground="black")
    axes.add_collection(
        PatchCollection(frames, facecolor="none", edgecolor="white", linewidth=0.9, path_effects=[stroke])
    )
    axes.set_yticks(pitch[0] * np.arange(len(labels)) + side[0] / 2 - 0.5, labels)
    axes.set_xticks([])
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    return figure


def token_map(images: ArrayLike, tokens: ArrayLike, grid: tuple[int, int], out: Path, *, count: int = 4) -> Path:
    """The first ``count`` images, and below each the map of its tokens: one colour a code, the same in every figure.

    Arguments and errors as ``code_patches``.
    """
    pixels, places = _fitting(images, tokens, grid)
    shown = min(count, len(pixels))
    aspect = pixels.shape[2] / pixels.shape[3]
    figure = blank(2.0 * shown + 0.3, 2 * (2.0 * aspect) + 0.2)
    panels = figure.subplots(2, shown, squeeze=False)
    for (above, below), image, codes in zip(panels.T, pixels, places, strict=False):
        above.imshow(image.transpose(1, 2, 0), interpolation="nearest", aspect="auto")
        below.imshow(_colours(codes.reshape(grid)), interpolation="nearest", aspect="auto")
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
        axes.set_box_aspect(aspect)
        axes.spines[:].set_visible(False)
    panels[0, 0].set_ylabel("image")
    panels[1, 0].set_ylabel(f"tokens, {grid[0]} × {grid[1]}")
    return save(figure, out)


def usage_histogram(counts: ArrayLike, out: Path) -> Path:
    """How often each code occurs, the most frequent first, on a logarithmic scale; the level of even use is dashed.

    Args:
        counts: (V,) integers, patches of each code, with a sum above 0.
        out: the PNG file to write.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    found = np.sort(np.asarray(counts))[::-1]
    shares, seen, size = 100 * found / found.sum(), int((found > 0).sum()), len(found)
    floor = min(shares[seen - 1], 100 / size) / 2
    figure = blank(7.0, 3.6)
    axes = figure.subplots()
    axes.stairs(shares[:seen], np.arange(seen + 1), baseline=floor, fill=True, color=BLUE)
    axes.axhline(100 / size, color=ORANGE, linestyle="--", linewidth=1.6, label=f"even use: {100 / size:.2g} %")
    if seen < size:
        label = f"never seen: {size - seen:,} codes"
        axes.axvspan(seen, size, facecolor="none", edgecolor=GREY, hatch="///", linewidth=0, label=label)
    axes.set(yscale="log", xlim=(0, size), ylim=(floor, 1.5 * shares[0]), ylabel="patches (%)")
    axes.set_xlabel(f"{size:,} codes, the most frequent first")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    return save(figure, out)


def _colours(codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """(h, w) → (h, w, 3) in [0, 1]: hue, strength and brightness of each code by chance; codes differ as greys too."""
    from matplotlib.colors import hsv_to_rgb

    chance = uniform(COLOURS, torch.from_numpy(codes)[..., None], torch.arange(3)).numpy()
    return hsv_to_rgb(chance * (1, 0.6, 0.65) + (0, 0.35, 0.35))


def _fitting(
    images: ArrayLike, tokens: ArrayLike, grid: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    pixels, places = np.asarray(images), np.asarray(tokens)
    fits = (
        pixels.ndim == 4
        and pixels.shape[1] == 3
        and not any(side % cells for side, cells in zip(pixels.shape[2:], grid, strict=True))
        and places.shape == (len(pixels), grid[0] * grid[1])
        and len(pixels) > 0
    )
    if not fits:
        raise MapetError(
            f"Images {pixels.shape}, tokens {places.shape} and a grid of {grid} do not fit one another: "
            f"expected (N, 3, H, W) and (N, {grid[0] * grid[1]}), the grid dividing H and W."
        )
    return pixels, places.astype(np.int64)
