"""Features of a frozen encoder, and their effective rank."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mapet.method.encoder import run_blocks
from mapet.utils.errors import MapetError, nearest

POOLS = {  # (N, F) float32
    "avg": "mean of patches",
    "token": "class token",
    "avg+token": "mean of patches and class token",
}
UNPOOLED = {  # (N, …, F) float16, to save memory
    "layers": "class token and mean of patches after each block",
    "patches": "all patches",
}


@torch.no_grad()
def features(
    encoder: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    pool: str = "avg",
    device: torch.device | str | None = None,
    precision: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Features of all images in the encoder's eval mode; each module's mode is restored afterwards.

    Args:
        encoder: (B, C, height, width) → (B, 1 + L, D), CLS first; a norm named ``fc_norm`` is applied after pooling.
        batches: pairs of normalised float images (B, C, height, width) and int64 labels (B,), -1 for none.
        pool: a key of ``POOLS``, whose default leaves CLS out as token prediction gives it no loss, or of
            ``UNPOOLED``; ``"layers"`` needs an encoder with ``blocks``, each giving (B, 1 + L, D).
        device: the encoder is moved there and stays; by default its own device.
        precision: of autocast.

    Returns:
        Features and (N,) int64 labels, both on the CPU. The features are (N, F) float32 with F = D, or 2 D for
        ``"avg+token"``; float16 (N, layers, 2 D) for ``"layers"`` and (N, L, D) for ``"patches"``.

    Raises:
        MapetError: an unknown pool, ``"layers"`` of an encoder without blocks, or no images.
    """
    known_pools = {**POOLS, **UNPOOLED}
    if pool not in known_pools:
        raise MapetError(f'There is no pool "{pool}".{nearest(pool, known_pools)}')
    dtype = torch.float32 if pool in POOLS else torch.float16
    target = torch.device(device) if device is not None else next(encoder.parameters()).device
    found: list[Tensor] = []
    targets: list[Tensor] = []
    with evaluating(encoder.to(target)), torch.autocast(target.type, precision, precision != torch.float32):
        for images, labels in batches:
            found.append(pooled(encoder, images.to(target, non_blocking=True), pool).to("cpu", dtype))
            targets.append(labels.long().cpu())
    if not found:
        raise MapetError("There are no images to encode: give a data set that is not empty.")
    return _joined(found), torch.cat(targets)


def pooled(encoder: nn.Module, images: Tensor, pool: str, layer: int | None = None) -> Tensor:
    """(B, C, height, width) → (B, F), (B, layers, 2 D) or (B, L, D), as the encoder's mode has it.

    Args:
        encoder: as in ``features``; with ``layer`` an ``Encoder``.
        images: normalised.
        pool: as in ``features``.
        layer: read the rows after so many blocks, without the final norm; None: the encoder's output.
    """
    if pool == "layers":
        return _layers(encoder, images)
    rows = encoder(images) if layer is None else _rows_after(encoder, images, layer)
    if pool == "patches":
        return rows[:, 1:]
    parts = {"avg": rows[:, 1:].mean(dim=1), "token": rows[:, 0]}
    norm = getattr(encoder, "fc_norm", nn.Identity()) if layer is None else nn.Identity()
    return torch.cat([norm(parts[name]) for name in pool.split("+")], dim=1)


def _rows_after(encoder: Any, images: Tensor, layer: int) -> Tensor:
    """(B, C, height, width) → (B, 1 + L, D)."""
    return run_blocks(encoder.blocks[:layer], encoder.embed(images) + encoder.pos_embed)


def _layers(encoder: nn.Module, images: Tensor) -> Tensor:
    """(B, C, height, width) → (B, layers, 2 D), read by forward hooks."""
    found: list[Tensor] = []

    def read(block: nn.Module, given: tuple[Tensor, ...], rows: Tensor) -> None:
        found.append(torch.cat([rows[:, 0], rows[:, 1:].mean(dim=1)], dim=1))

    blocks = getattr(encoder, "blocks", None)
    if not blocks:
        raise MapetError(f"{type(encoder).__name__} has no blocks: features of its layers cannot be read.")
    hooks = [block.register_forward_hook(read) for block in blocks]
    try:
        encoder(images)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(found, dim=1)


def _joined(parts: list[Tensor]) -> Tensor:
    """``torch.cat`` that frees each part once it is copied: peak memory is little more than the result."""
    end = sum(map(len, parts))
    whole = parts[0].new_empty(end, *parts[0].shape[1:])
    while parts:
        part = parts.pop()
        whole[end - len(part) : end] = part
        end -= len(part)
    return whole


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a module and its parts; their modes come back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def effective_rank(features: Tensor) -> float:
    """Effective number of directions of the centred features, in [1, F]; 0 if they are constant up to rounding.

    The exponential of the entropy of the normalised singular values: Roy and Vetterli, "The effective rank",
    EUSIPCO 2007.

    Args:
        features: (N, F) float.
    """
    exact = features.double()
    centred = exact - exact.mean(dim=0)
    values = torch.linalg.eigvalsh(centred.T @ centred).clamp(min=0).sqrt()
    values = values[values > torch.finfo(torch.float32).eps * exact.norm()]
    if not len(values):
        return 0.0
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())
