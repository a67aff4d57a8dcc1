"""What an encoder looks at: attention of CLS, attention rollout, principal components of the patches.

Legend: B images, L patches, D width, N heads.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mapet.method.encoder import Attention, Encoder

CLIPPED = 0.01  # share of the patches at each end of a principal component that are drawn in its extreme colour


@torch.no_grad()
def attention_maps(encoder: Encoder, images: Tensor) -> list[Tensor]:
    """The attention of every block: ``depth`` tensors (B, N, 1 + L, 1 + L) float32, each row with sum 1.

    Args:
        encoder: in any mode; on the device of the images.
        images: (B, C, H, W), normalised.
    """
    found: list[Tensor] = []

    def read(module: Attention, given: tuple[Tensor, ...]) -> None:
        q, k = F.linear(given[0], module.qkv.weight, module.qkv.bias).chunk(3, dim=-1)[:2]
        q, k = (rows.view(*rows.shape[:2], module.heads, -1).transpose(1, 2).float() for rows in (q, k))
        found.append((q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(dim=-1))

    hooks = [block.attn.register_forward_pre_hook(read) for block in encoder.blocks]  # type: ignore[union-attr]
    try:
        Encoder.forward(encoder, images)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def rollout(maps: list[Tensor]) -> Tensor:
    """Attention rollout (Abnar and Zuidema, arXiv 2005.00928): how much of each patch reaches CLS, (B, L).

    Heads are averaged, the residual connection counts as attention to itself, and the blocks are multiplied.
    """
    joint = torch.eye(maps[0].shape[-1], device=maps[0].device)
    for heads in maps:
        joint = (heads.mean(dim=1) + torch.eye(heads.shape[-1], device=heads.device)) / 2 @ joint
    return joint[:, 0, 1:]


def principal_colors(patches: Tensor) -> Tensor:
    """The first three principal components of patch features (B, L, D) over all images as colours (B, L, 3) in [0, 1].

    Each component's sign is such that its largest loading is positive, so that a figure does not depend on chance.
    """
    flat = patches.flatten(0, 1).double()
    centred = flat - flat.mean(dim=0)
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -3:].flip(1)
    axes = axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
    scores = centred @ axes
    low, high = (scores.quantile(share, dim=0) for share in (CLIPPED, 1 - CLIPPED))
    return ((scores - low) / (high - low).clamp(min=1e-12)).clamp(0, 1).view(*patches.shape[:2], -1).float()


def similarity(patches: Tensor, position: int) -> Tensor:
    """Cosine of all patches (B, L, D) with the one at ``position``: (B, L)."""
    unit = F.normalize(patches.float(), dim=2)
    return (unit @ unit[:, position, :, None])[..., 0]
