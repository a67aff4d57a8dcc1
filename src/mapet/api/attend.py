"""Look inside an encoder: where CLS attends, and which patches it takes for similar."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.api.encoders import headless, load_from
from mapet.config.flat import updated
from mapet.config.use import AttendSettings
from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from mapet.data.dataset import ImageDataset

MOST = 64  # images of one call


@dataclass(frozen=True, eq=False)
class Attended:
    """What ``attend`` found; grids are rows × columns of patches.

    Attributes:
        image_ids: B ids.
        images: (B, H, W, 3) uint8, as the encoder sees them.
        heads: (B, N, rows, columns), attention of CLS to the patches by each head of the block.
        rollout: (B, rows, columns), attention rollout over all blocks.
        colors: (B, rows, columns, 3) in [0, 1], principal components of the patches' features.
        similarity: (B, rows, columns), cosine with the chosen patch.
        patch: its row and column.
        block: the block of ``heads``, from 1.
    """

    image_ids: tuple[str, ...]
    images: "NDArray[Any]"
    heads: "NDArray[Any]"
    rollout: "NDArray[Any]"
    colors: "NDArray[Any]"
    similarity: "NDArray[Any]"
    patch: tuple[int, int]
    block: int


def attend(
    source: str | Path,
    images: Any,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    settings: AttendSettings | None = None,
    **changes: Any,
) -> Attended:
    """Attention of CLS, attention rollout, principal components of the patches, and similarity to one patch.

    Token prediction gives CLS no loss, so that after a pre-training alone its attention means little; after a
    fine-tuning it shows what the class depends on.

    Args:
        source: FROM.
        images: as for ``embed``; at most 64.
        out: PNG or SVG file for a figure with one line per image; None: none.
        overwrite: replace an earlier figure.
        settings: the defaults, without any.
        changes: settings by name, for instance ``block=6``.

    Raises:
        MapetError: a FROM or images that do not fit, a patch or block that does not exist, or a file in the way.
    """
    from mapet.data.augment import normalize, to_float
    from mapet.data.given import open_images
    from mapet.engine.distributed import pick_device
    from mapet.evals.attention import attention_maps, principal_colors, rollout, similarity
    from mapet.evals.features import evaluating
    from mapet.viz.attention import attention_figure
    from mapet.viz.figures import figure_file

    s = updated(settings or AttendSettings(), **changes)
    path = None if out is None else figure_file(out, overwrite, images=images)
    encoder = headless(load_from(source, num_heads=s.num_heads)).encoder
    block = s.block or len(encoder.blocks)
    if block > len(encoder.blocks):
        raise MapetError(f"--block must be <= {len(encoder.blocks)}, the number of blocks, got {block}.")
    row, column = s.patch or (encoder.grid[0] // 2, encoder.grid[1] // 2)
    if not (0 <= row < encoder.grid[0] and 0 <= column < encoder.grid[1]):
        raise MapetError(f"--patch must be a row and a column of the grid {encoder.grid}, from 0, got {row} {column}.")
    ids, pixels = _read(open_images(images), encoder.img_size)
    device = pick_device(s.accelerator)
    inputs = normalize(to_float(pixels, device))
    with evaluating(encoder.to(device)):
        maps, rows = attention_maps(encoder, inputs), encoder(inputs).detach()
    found = Attended(
        ids,
        pixels.permute(0, 2, 3, 1).numpy(),
        _grid(maps[block - 1][:, :, 0, 1:], encoder.grid),
        _grid(rollout(maps), encoder.grid),
        principal_colors(rows[:, 1:]).view(len(ids), *encoder.grid, 3).cpu().numpy(),
        _grid(similarity(rows[:, 1:], row * encoder.grid[1] + column), encoder.grid),
        (row, column),
        block,
    )
    if path is not None:
        attention_figure(found.images, found.heads, found.rollout, found.colors, found.similarity, found.patch, path)
    return found


def _grid(values: "Tensor", grid: tuple[int, int]) -> "NDArray[Any]":
    """(…, L) → (…, rows, columns)."""
    found: NDArray[Any] = values.reshape(*values.shape[:-1], *grid).cpu().numpy()
    return found


def _read(source: "ImageDataset", size: tuple[int, int]) -> Any:
    """Ids and uint8 pixels (B, 3, H, W) of the readable images.

    Raises:
        MapetError: too many images, or none that can be read.
    """
    import torch

    from mapet.data.loader import in_order
    from mapet.data.unreadable import UnreadableImages
    from mapet.utils.log import log
    from mapet.utils.view import CenterCropResize

    if len(source) > MOST:
        raise MapetError(f"IMAGES are {len(source):,}, and a figure shows at most {MOST}: give fewer.")
    bad = UnreadableImages(len(source), 1.0)
    batches = list(in_order(source, CenterCropResize(size), MOST, bad=bad))
    ids = tuple(source.image_id(i) for batch in batches for i in batch.index.tolist())
    if not ids:
        raise MapetError(f"No image can be read: {bad.note()}")
    if note := bad.note():
        log.info(f"note      {note}")
    return ids, torch.cat([batch.images for batch in batches])
