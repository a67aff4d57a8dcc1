"""One vector per picture from a frozen encoder, and how many directions such vectors use."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mapet.errors import MapetError, nearest

POOLS = {
    "avg": "mean of patches",
    "token": "class token",
    "avg+token": "mean of patches beside class token",
}


@torch.no_grad()
def features(
    encoder: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    pool: str = "avg",
    device: torch.device | str | None = None,
    precision: torch.dtype = torch.float32,
    progress: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Features of all pictures in the encoder's eval mode; every module's own mode is restored after.

    Args:
        encoder: (B, C, height, width) → (B, 1 + L, D), CLS first; a norm named ``fc_norm`` is applied after pooling.
        batches: pairs of normalised float images (B, C, height, width) and int64 labels (B,), -1 for none.
        pool: a key of ``POOLS``. The patches are the default: CLS takes no loss in token prediction.
        device: where to compute; the encoder is moved there and stays. By default where it is.
        precision: of the encoder's products (autocast).
        progress: called after each batch with the number of pictures done.

    Returns:
        (N, F) float32 and (N,) int64, both on the CPU; F = D, or 2 D for ``"avg+token"``.

    Raises:
        MapetError: an unknown pool, or no pictures.
    """
    if pool not in POOLS:
        raise MapetError(f'There is no pool "{pool}".{nearest(pool, POOLS)}')
    place = torch.device(device) if device is not None else next(encoder.parameters()).device
    found: list[Tensor] = []
    known: list[Tensor] = []
    done = 0
    with _evaluating(encoder.to(place)), torch.autocast(place.type, precision, precision != torch.float32):
        for images, labels in batches:
            found.append(_pooled(encoder, images.to(place, non_blocking=True), pool).float().cpu())
            known.append(labels.long().cpu())
            done += len(images)
            if progress:
                progress(done)
    if not done:
        raise MapetError("There are no pictures to take features of: give a data set that is not empty.")
    return torch.cat(found), torch.cat(known)


def _pooled(encoder: nn.Module, images: Tensor, pool: str) -> Tensor:
    """(B, C, height, width) → (B, F)."""
    rows = encoder(images)
    parts = {"avg": rows[:, 1:].mean(dim=1), "token": rows[:, 0]}
    norm = getattr(encoder, "fc_norm", nn.Identity())
    return torch.cat([norm(parts[name]) for name in pool.split("+")], dim=1)


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
