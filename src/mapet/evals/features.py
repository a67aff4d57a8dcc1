"""What a frozen encoder gives for each image, and how many directions such vectors use."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mapet.utils.errors import MapetError, nearest

POOLS = {  # (N, F) float32
    "avg": "mean of patches",
    "token": "class token",
    "avg+token": "mean of patches beside class token",
}
UNPOOLED = {  # (N, …, F) float16, to save memory
    "layers": "class token beside mean of patches after each block",
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
    """Features of all images in the encoder's eval mode; every module's own mode is restored after.

    Args:
        encoder: (B, C, height, width) → (B, 1 + L, D), CLS first; a norm named ``fc_norm`` is applied after pooling.
        batches: pairs of normalised float images (B, C, height, width) and int64 labels (B,), -1 for none.
        pool: a key of ``POOLS``, whose default leaves CLS out as it takes no loss in token prediction, or of
            ``UNPOOLED``; ``"layers"`` needs an encoder with ``blocks``, each giving (B, 1 + L, D).
        device: where to compute; the encoder is moved there and stays. By default where it is.
        precision: of the encoder's products (autocast).

    Returns:
        Features and (N,) int64 labels, both on the CPU. The features are (N, F) float32 with F = D, or 2 D for
        ``"avg+token"``; float16 (N, layers, 2 D) for ``"layers"`` and (N, L, D) for ``"patches"``.

    Raises:
        MapetError: an unknown pool, an encoder without blocks where layers are asked for, or no images.
    """
    known_pools = {**POOLS, **UNPOOLED}
    if pool not in known_pools:
        raise MapetError(f'There is no pool "{pool}".{nearest(pool, known_pools)}')
    kept = torch.float32 if pool in POOLS else torch.float16
    place = torch.device(device) if device is not None else next(encoder.parameters()).device
    found: list[Tensor] = []
    known: list[Tensor] = []
    with _evaluating(encoder.to(place)), torch.autocast(place.type, precision, precision != torch.float32):
        for images, labels in batches:
            found.append(_pooled(encoder, images.to(place, non_blocking=True), pool).to("cpu", kept))
            known.append(labels.long().cpu())
    if not found:
        raise MapetError("There are no images to take features of: give a data set that is not empty.")
    return _joined(found), torch.cat(known)


def _pooled(encoder: nn.Module, images: Tensor, pool: str) -> Tensor:
    """(B, C, height, width) → (B, F), (B, layers, 2 D) or (B, L, D)."""
    if pool == "layers":
        return _layers(encoder, images)
    rows = encoder(images)
    if pool == "patches":
        return rows[:, 1:]
    parts = {"avg": rows[:, 1:].mean(dim=1), "token": rows[:, 0]}
    norm = getattr(encoder, "fc_norm", nn.Identity())
    return torch.cat([norm(parts[name]) for name in pool.split("+")], dim=1)


def _layers(encoder: nn.Module, images: Tensor) -> Tensor:
    """(B, C, height, width) → (B, layers, 2 D), read from the blocks as they pass."""
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
    """All parts in one; each is let go as soon as it is copied, so that memory holds little more than the whole."""
    end = sum(map(len, parts))
    whole = parts[0].new_empty(end, *parts[0].shape[1:])
    while parts:
        part = parts.pop()
        whole[end - len(part) : end] = part
        end -= len(part)
    return whole


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def effective_rank(features: Tensor) -> float:
    """How many directions the centred features use, from 1 to F; 0 where nothing varies beyond float32 rounding.

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
