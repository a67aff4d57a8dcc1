"""Figures of what an encoder looks at."""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mapet.viz.figures import blank, write

INCHES, HEADS = 1.3, 6  # of a panel; heads that are drawn
TITLE = 8


def attention_figure(
    images: NDArray[Any],
    heads: NDArray[Any],
    rollout: NDArray[Any],
    colors: NDArray[Any],
    similarity: NDArray[Any],
    patch: tuple[int, int],
    out: Path,
) -> Path:
    """One line per image: the image, rollout, up to six heads of CLS, principal components, similarity to a patch.

    Arguments as the attributes of ``mapet.Attended``. Each map of attention has its own scale, from 0 to its largest
    value; similarities all run from -1 to 1.

    Returns:
        ``out``.
    """
    shown = min(HEADS, heads.shape[1])
    titles = ["image", "rollout", *(f"head {i + 1}" for i in range(shown)), "components", "similarity"]
    figure = blank(INCHES * len(titles), INCHES * len(images) + 0.3)
    panels = figure.subplots(len(images), len(titles), squeeze=False)
    for line, image, rolled, per_head, color, similar in zip(
        panels, images, rollout, heads, colors, similarity, strict=True
    ):
        line[0].imshow(image)
        height, width = image.shape[0] / similar.shape[0], image.shape[1] / similar.shape[1]
        line[0].add_patch(_frame((patch[1] * width - 0.5, patch[0] * height - 0.5), width, height))
        for axes, values in zip(line[1:], [rolled, *per_head[:shown]], strict=False):
            axes.imshow(values, cmap="viridis", vmin=0)
        line[-2].imshow(color)
        line[-1].imshow(similar, cmap="RdBu_r", vmin=-1, vmax=1)
    for axes, title in zip(panels[0], titles, strict=True):
        axes.set_title(title, fontsize=TITLE)
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    return write(figure, out)


def reveal_figure(frames: list[tuple[str, NDArray[Any]]], out: Path) -> Path:
    """Frames (H, W, 3) uint8 from left to right, each with its title. Returns ``out``."""
    figure = blank(1.9 * len(frames), 2.5)
    for axes, (title, frame) in zip(figure.subplots(1, len(frames), squeeze=False)[0], frames, strict=True):
        axes.imshow(frame, interpolation="nearest")
        axes.set_title(title, fontsize=TITLE)
        axes.set_axis_off()
    return write(figure, out)


def _frame(corner: tuple[float, float], width: float, height: float) -> Any:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    stroke = [withStroke(linewidth=2.4, foreground="black")]
    return Rectangle(corner, width, height, fill=False, edgecolor="white", linewidth=1.2, path_effects=stroke)
