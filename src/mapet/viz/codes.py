"""Figures of a tokenizer: patches of its codes, token maps of images, and code usage."""

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

LABEL = 1.2  # inches, left of a row of patches
BACKGROUND, PADDING = 255, 232  # grey levels between tiles, and in a tile outside its image
CODES, EXAMPLES, COLORS = 1, 2, 3  # salts of independent random streams

Pixels = NDArray[np.uint8]
Pair = NDArray[np.int64]  # (2,): down, across


@dataclass(frozen=True)
class Row:
    """Patches with one label, one per image.

    Attributes:
        label: text to the left of the row.
        images: (n, 3, H, W) uint8.
        patches: n indices in row-major order, the patch of each image.
    """

    label: str
    images: Pixels
    patches: Sequence[int]


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
    """Draw rows of outlined patches with their surroundings; ``rows`` is consumed one row at a time.

    Args:
        rows: at least one; a row without images stays white.
        grid: rows and columns of patches in an image.
        size: H and W of all images, multiples of the grid.
        out: PNG file to write; an SVG file is written beside it.
        examples: maximum number of patches per row.
        reach: patches shown on each side of the outlined one.
        inches: shorter side of one patch with its surroundings.
    """
    patch = np.array([size[0] // grid[0], size[1] // grid[1]], dtype=np.int64)
    side = (1 + 2 * reach) * patch
    pitch = side + np.maximum(1, patch // 3)  # with a gap
    strips, corners, labels = [], [], []
    for number, row in enumerate(rows):
        strip = np.full((pitch[0], pitch[1] * examples, 3), BACKGROUND, dtype=np.uint8)
        for column, (image, index) in enumerate(zip(row.images, row.patches, strict=True)):
            left = column * pitch[1]
            strip[: side[0], left : left + side[1]] = _surroundings(image, divmod(index, grid[1]), patch, reach)
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
    """Draw random patches of random codes: one row per code, each patch outlined, with the eight patches around it.

    Args:
        images: (N, 3, H, W) uint8.
        tokens: (N, L) integers, the code of every patch in row-major order.
        grid: rows and columns of patches.
        out: PNG file to write; an SVG file is written beside it.
        codes: number of rows, drawn from the codes in use.
        examples: number of patches per row, drawn from the patches of its code.
        seed: random seed of both draws.

    Raises:
        MapetError: the shapes of ``images``, ``tokens`` and ``grid`` do not match.
    """
    pixels, token_ids = _validated(images, tokens, grid)

    def rows() -> Iterator[Row]:
        for code in np.sort(_draw(np.unique(token_ids), codes, CODES, seed)):
            found = np.argwhere(token_ids == code)
            chosen = found[_draw(np.arange(len(found)), examples, EXAMPLES, seed, int(code))]
            yield Row(code_label(int(code), len(found)), pixels[chosen[:, 0]], chosen[:, 1].tolist())

    return patch_rows(rows(), grid, pixels.shape[2:], out, examples=examples)


def typical_patches(
    images: ArrayLike, tokens: ArrayLike, grid: tuple[int, int], examples: int = 64
) -> dict[int, Pixels]:
    """Of each code in use, the patch (height, width, 3) whose pixels are nearest to the mean of its patches.

    Args:
        images: (N, 3, H, W) uint8.
        tokens: (N, L) integers, the code of every patch in row-major order.
        grid: rows and columns of patches.
        examples: patches of a code that are compared, the first ones.

    Raises:
        MapetError: the shapes of ``images``, ``tokens`` and ``grid`` do not match.
    """
    pixels, token_ids = _validated(images, tokens, grid)
    height, width = pixels.shape[2] // grid[0], pixels.shape[3] // grid[1]
    cut = pixels.reshape(len(pixels), 3, grid[0], height, grid[1], width).transpose(0, 2, 4, 3, 5, 1)
    patches, codes = cut.reshape(-1, height, width, 3), token_ids.flatten()
    order = codes.argsort(kind="stable")
    found, starts = np.unique(codes[order], return_index=True)
    typical = {}
    for code, some in zip(found.tolist(), np.split(order, starts[1:]), strict=True):
        own = patches[some[:examples]].astype(np.float64)
        typical[code] = patches[some[((own - own.mean(axis=0)) ** 2).sum(axis=(1, 2, 3)).argmin()]]
    return typical


def code_label(code: int, patches: int) -> str:
    """Return the label of a code's row."""
    return f"code {code}\n{patches:,} patches"


def _draw(items: NDArray[np.int64], count: int, *seeds: int) -> NDArray[np.int64]:
    """Draw ``count`` of the (n,) items without replacement, or all if there are fewer."""
    chosen = random_bits(*seeds, torch.from_numpy(items)).argsort()[:count]
    drawn: NDArray[np.int64] = items[chosen.numpy()]
    return drawn


def _surroundings(image: Pixels, position: tuple[int, int], patch: Pair, reach: int) -> Pixels:
    """(3, H, W) → (height, width, 3): a patch and ``reach`` more on every side, light grey outside the image."""
    (margin_y, margin_x), (top, left) = reach * patch, patch * position
    padded = np.pad(image, ((0, 0), (margin_y, margin_y), (margin_x, margin_x)), constant_values=PADDING)
    height, width = (1 + 2 * reach) * patch
    return padded[:, top : top + height, left : left + width].transpose(1, 2, 0)


def _mosaic(
    canvas: Pixels, pitch: Pair, side: Pair, corners: list[Pair], patch: Pair, labels: list[str], inches: float
) -> "Figure":
    """Draw the canvas with one label per row and a frame at each corner, white on black to show on any image."""
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


def token_map(
    images: ArrayLike,
    tokens: ArrayLike,
    grid: tuple[int, int],
    out: Path,
    *,
    count: int = 4,
    colors: NDArray[np.float64] | None = None,
) -> Path:
    """Draw the first ``count`` images and, below each, its token map; a code has the same color in every figure.

    Args:
        images, tokens, grid, out: as in ``code_patches``.
        count: images that are drawn.
        colors: (V, 3) in [0, 1], of ``code_colors``; None: random ones.

    Raises:
        MapetError: as ``code_patches``.
    """
    pixels, token_ids = _validated(images, tokens, grid)
    shown = min(count, len(pixels))
    aspect = pixels.shape[2] / pixels.shape[3]
    figure = blank(2.0 * shown + 0.3, 2 * (2.0 * aspect) + 0.2)
    panels = figure.subplots(2, shown, squeeze=False)
    for (above, below), image, codes in zip(panels.T, pixels, token_ids, strict=False):
        above.imshow(image.transpose(1, 2, 0), interpolation="nearest", aspect="auto")
        below.imshow(
            _colors(codes.reshape(grid)) if colors is None else colors[codes.reshape(grid)],
            interpolation="nearest",
            aspect="auto",
        )
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
        axes.set_box_aspect(aspect)
        axes.spines[:].set_visible(False)
    panels[0, 0].set_ylabel("image")
    panels[1, 0].set_ylabel(f"tokens, {grid[0]} × {grid[1]}")
    return save(figure, out)


def usage_histogram(counts: ArrayLike, out: Path) -> Path:
    """Draw the share of patches per code, in descending order, on a logarithmic scale; uniform use is dashed.

    Args:
        counts: (V,) integers, number of patches of each code, with a sum > 0.
        out: PNG file to write; an SVG file is written beside it.
    """
    return save(usage_figure(counts), out)


def usage_figure(counts: ArrayLike) -> "Figure":
    """As ``usage_histogram``, not written."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    sorted_counts = np.sort(np.asarray(counts))[::-1]
    shares, seen, size = 100 * sorted_counts / sorted_counts.sum(), int((sorted_counts > 0).sum()), len(sorted_counts)
    floor = min(shares[seen - 1], 100 / size) / 2
    figure = blank(7.0, 3.6)
    axes = figure.subplots()
    axes.stairs(shares[:seen], np.arange(seen + 1), baseline=floor, fill=True, color=BLUE)
    axes.axhline(100 / size, color=ORANGE, linestyle="--", linewidth=1.6, label=f"uniform use: {100 / size:.2g} %")
    if seen < size:
        label = f"unused: {size - seen:,} codes"
        axes.axvspan(seen, size, facecolor="none", edgecolor=GREY, hatch="///", linewidth=0, label=label)
    axes.set(yscale="log", xlim=(0, size), ylim=(floor, 1.5 * shares[0]), ylabel="patches (%)")
    axes.set_xlabel(f"{size:,} codes, most frequent first")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    return figure


def code_colors(vectors: ArrayLike) -> NDArray[np.float64]:
    """Colours (V, 3) in [0, 1] of codes by the first three principal components of their vectors (V, F).

    Codes with near vectors have near colours; each component's ranks are spread evenly.
    """
    exact = np.asarray(vectors, dtype=np.float64)
    centred = exact - exact.mean(axis=0)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :3]
    axes = axes * np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0))
    ranks = (centred @ axes).argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
    found: NDArray[np.float64] = np.full((len(exact), 3), 0.5)
    found[:, : ranks.shape[1]] = ranks / max(1, len(exact) - 1)
    return found


def _colors(codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """(h, w) codes → (h, w, 3) in [0, 1]: random hue, saturation and brightness, so that codes differ in grey too."""
    from matplotlib.colors import hsv_to_rgb

    hsv = uniform(COLORS, torch.from_numpy(codes)[..., None], torch.arange(3)).numpy()
    return hsv_to_rgb(hsv * (1, 0.6, 0.65) + (0, 0.35, 0.35))


def _validated(
    images: ArrayLike, tokens: ArrayLike, grid: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    pixels, token_ids = np.asarray(images), np.asarray(tokens)
    fits = (
        pixels.ndim == 4
        and pixels.shape[1] == 3
        and not any(side % cells for side, cells in zip(pixels.shape[2:], grid, strict=True))
        and token_ids.shape == (len(pixels), grid[0] * grid[1])
        and len(pixels) > 0
    )
    if not fits:
        raise MapetError(
            f"Images {pixels.shape}, tokens {token_ids.shape} and a grid of {grid} do not fit one another: "
            f"expected (N, 3, H, W) and (N, {grid[0] * grid[1]}), the grid dividing H and W."
        )
    return pixels, token_ids.astype(np.int64)
