"""Features of all patches of images of any size, and what share of each patch every class has."""

import torch
from torch import Tensor

from mapet.method.encoder import Encoder


def resampled(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Position embeddings (1, 1 + L, D) for another grid, by timm's bicubic interpolation; that of CLS is kept."""
    from timm.layers import resample_abs_pos_embed

    positions: Tensor = resample_abs_pos_embed(table, list(new), list(old))
    return positions


def embedded(encoder: Encoder, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Rows (B, 1 + h · w, D) with interpolated positions, of images whose sides are multiples of the patch; (h, w)."""
    height, width = images.shape[-2:]
    grid = height // encoder.patch_size[0], width // encoder.patch_size[1]
    positions = encoder.pos_embed if grid == encoder.grid else resampled(encoder.pos_embed, encoder.grid, grid)
    return encoder.embed(images) + positions, grid


def patch_features(encoder: Encoder, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """(B, 3, H, W) normalised → features (B, h · w, D) of the encoder's output in row-major order, and (h, w)."""
    rows, grid = embedded(encoder, images)
    return encoder.run(rows)[:, 1:], grid


def patch_size_of(size: tuple[int, int], side: int, patch: tuple[int, int]) -> tuple[int, int]:
    """The size (height, width) nearest to ``size`` scaled to a shorter side of ``side``, in whole patches."""
    scale = side / min(size)
    height, width = (max(1, round(length * scale / one)) * one for length, one in zip(size, patch, strict=True))
    return height, width


def class_shares(targets: Tensor, grid: tuple[int, int], patch: tuple[int, int], classes: int) -> Tensor:
    """Share of each class in every patch, (h · w, classes) float32; rows of ignored pixels sum to less than 1.

    Args:
        targets: (H, W) int64, -1 for ignored pixels; resized by nearest neighbour to the patches' pixels.
        grid: (h, w).
        patch: pixels of a patch, (height, width).
        classes: number of classes.
    """
    (h, w), (ph, pw) = grid, patch
    pixels = torch.nn.functional.interpolate(targets[None, None].float(), (h * ph, w * pw), mode="nearest-exact")
    parts = pixels.view(h, ph, w, pw).permute(0, 2, 1, 3).reshape(h * w, ph * pw).long() + 1
    counts = torch.zeros(h * w, classes + 1).scatter_add_(1, parts, torch.ones(parts.shape))
    return counts[:, 1:] / (ph * pw)
