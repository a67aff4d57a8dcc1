"""A vision transformer (Dosovitskiy et al., arXiv 2010.11929) written for reading, with timm's parameter names.

Three handles: ``embed`` makes a row of every position, ``run`` sends rows through the blocks, and ``forward`` does both
for a plain image. Objectives put their own rows and mask between the two.

Legend: B images, L patches, D width, R rows, K ≤ R readable rows, Q ≤ R rows wanted, H heads, d = D / H.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mapet.utils.rng import random_bits, uniform

SIZES: dict[str, dict[str, int]] = {
    "vit_tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "vit_small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "vit_base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "vit_large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}


class Encoder(nn.Module):
    """A ViT with one class token; arguments and parameters are named as in timm's ``VisionTransformer``.

    Args:
        img_size: pixels, or (height, width).
        patch_size: pixels, or (height, width).
        init_values: start of the layer scale; none without it.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0; one draw a sample for all its rows.
        pos_embed: ``"learn"``, or ``"sincos"`` for a fixed table (column first, as MAE).
        global_pool: what a head reads: ``"token"`` = CLS, ``"avg"`` = mean of the patches with a norm of its own.
        num_classes: width of the head; 0 for none.

    Raises:
        ValueError: patches that do not tile the image, or heads that do not divide the width.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        init_values: float | None = None,
        drop_path_rate: float = 0.0,
        pos_embed: str = "learn",
        global_pool: str = "token",
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        self.img_size, self.patch_size, self.in_chans = _pair(img_size), _pair(patch_size), in_chans
        self.grid = _tiles(self.img_size, self.patch_size)
        self.embed_dim, self.num_heads, self.mlp_ratio = embed_dim, num_heads, mlp_ratio
        self.init_values, self.drop_path_rate = init_values, drop_path_rate
        self.global_pool, self.num_classes = global_pool, num_classes
        self.patch_embed = PatchEmbed(self.patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.length, embed_dim), pos_embed == "learn")
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio, init_values) for _ in range(depth))
        average = global_pool == "avg"
        self.norm = nn.Identity() if average else nn.LayerNorm(embed_dim, eps=1e-6)
        self.fc_norm = nn.LayerNorm(embed_dim, eps=1e-6) if average else nn.Identity()
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        self.reset_parameters()

    @property
    def length(self) -> int:
        """L, the number of patches."""
        return self.grid[0] * self.grid[1]

    def reset_parameters(self) -> None:
        """timm's initialisation, which the published code shares: normal 0.02 cut at 2, class token about 0."""
        nn.init.normal_(self.cls_token, std=1e-6)
        if self.pos_embed.requires_grad:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        else:
            self.pos_embed.data[0] = sincos(self.grid, self.embed_dim)
        self.apply(init_linear)

    def embed(self, images: Tensor) -> Tensor:
        """(B, C, height, width) → (B, 1 + L, D): CLS and patches, without positions."""
        patches = self.patch_embed(images)
        return torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)

    def run(
        self, rows: Tensor, visible: Tensor | None = None, last: int | None = None, seed: Tensor | None = None
    ) -> Tensor:
        """All blocks and the final norm.

        Args:
            rows: (B, R, D), positions added.
            visible: (R, K) bool, row i reads row j; the rows from K on are read by nobody. None: all read all.
            last: return, and compute in the last block, only the last Q rows.
            key: (B,) int64, each sample's own seed for stochastic depth; without it torch's generator draws.

        Returns:
            (B, R, D), or (B, Q, D) with ``last`` = Q.
        """
        keep = drop_path_scale(self.blocks, self.drop_path_rate, len(rows), seed)
        return self.norm(run_blocks(self.blocks, rows, visible, last, keep))

    def forward(self, images: Tensor, seed: Tensor | None = None) -> Tensor:
        """(B, C, height, width) → (B, 1 + L, D), CLS first, after the final norm (an identity with ``"avg"``)."""
        return self.run(self.embed(images) + self.pos_embed, seed=seed)

    def forward_head(self, features: Tensor) -> Tensor:
        """(B, 1 + L, D) → (B, classes), or pooled (B, D) without a head."""
        average = self.global_pool == "avg"
        pooled = features[:, 1:].mean(dim=1) if average else features[:, 0]
        return self.head(self.fc_norm(pooled))


class Classifier(Encoder):
    """An encoder that goes on to its head: images (B, C, height, width) → logits (B, classes)."""

    def forward(self, images: Tensor, seed: Tensor | None = None) -> Tensor:
        """Pool, norm and head after the blocks."""
        return self.forward_head(super().forward(images, seed))


class PatchEmbed(nn.Module):
    """(B, C, height, width) → (B, L, D), patches row by row."""

    def __init__(self, patch_size: tuple[int, int], in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """One linear map a patch: the convolution as a plain product, up to twice as fast for small patches."""
        height, width = self.proj.kernel_size
        batch, channels, rows, columns = images.shape
        patches = images.reshape(batch, channels, rows // height, height, columns // width, width)
        pixels = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return F.linear(pixels, self.proj.weight.flatten(1), self.proj.bias)


class Block(nn.Module):
    """Pre-norm attention and MLP, each with an optional layer scale and stochastic depth."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, init_values: float | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.ls1 = LayerScale(dim, init_values) if init_values else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls2 = LayerScale(dim, init_values) if init_values else nn.Identity()

    def forward(
        self, rows: Tensor, visible: Tensor | None = None, last: int | None = None, keep: Tensor | None = None
    ) -> Tensor:
        """(B, R, D) → (B, R, D), or (B, Q, D); ``keep`` (2, B, 1, 1) scales the branches, else as ``Encoder.run``."""
        start = 0 if last is None else rows.shape[1] - last
        read = self.ls1(self.attn(self.norm1(rows), visible, start))
        rows = rows[:, start:] + (read if keep is None else read * keep[0])
        thought = self.ls2(self.mlp(self.norm2(rows)))
        return rows + (thought if keep is None else thought * keep[1])


class Attention(nn.Module):
    """Multi-head self-attention; keys and values only of rows that are read, queries only of rows that are wanted."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide a width of {dim}")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, rows: Tensor, visible: Tensor | None, start: int) -> Tensor:
        """(B, R, D) → (B, R − start, D)."""
        dim = rows.shape[-1]
        q_weight, kv_weight = torch.split(self.qkv.weight, [dim, 2 * dim])
        q_bias, kv_bias = torch.split(self.qkv.bias, [dim, 2 * dim])
        keys = rows if visible is None else rows[:, : visible.shape[1]]
        q = self._split(F.linear(rows[:, start:], q_weight, q_bias))
        k, v = map(self._split, F.linear(keys, kv_weight, kv_bias).chunk(2, dim=-1))
        mask = None if visible is None else visible[start:]
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(read.transpose(1, 2).flatten(2))

    def _split(self, rows: Tensor) -> Tensor:
        """(B, R, D) → (B, H, R, d)."""
        return rows.view(*rows.shape[:2], self.heads, -1).transpose(1, 2)


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, rows: Tensor) -> Tensor:
        """(B, R, D) → (B, R, D)."""
        return self.fc2(F.gelu(self.fc1(rows)))


class LayerScale(nn.Module):
    """A learned factor per channel (Touvron et al., arXiv 2103.17239)."""

    def __init__(self, dim: int, init_values: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init_values))

    def forward(self, rows: Tensor) -> Tensor:
        """(B, R, D) → (B, R, D)."""
        return rows * self.gamma


def run_blocks(
    blocks: nn.ModuleList,
    rows: Tensor,
    visible: Tensor | None = None,
    last: int | None = None,
    keep: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """(B, R, D) → (B, R, D), or (B, Q, D): rows through one block after another; arguments as ``Encoder.run``."""
    keep = keep or [None] * len(blocks)
    for block, kept in zip(blocks[:-1], keep, strict=False):
        rows = block(rows, visible, keep=kept)
    return blocks[-1](rows, visible, last, keep[-1])


def drop_path_scale(blocks: nn.ModuleList, rate: float, samples: int, seed: Tensor | None) -> Sequence[Tensor | None]:
    """Stochastic depth (Huang et al., arXiv 1603.09382): for each block (2, B, 1, 1), 0 or 1 / (1 − its rate).

    The rate grows linearly from 0 to ``rate`` at the last block; nothing is dropped in evaluation.
    """
    if not rate or not blocks.training:
        return [None] * len(blocks)
    device = next(blocks.parameters()).device
    place = device if seed is None else seed.device
    rates = torch.linspace(0, rate, len(blocks), device=place)[:, None, None]
    branch = torch.arange(2 * len(blocks), device=place).view(-1, 2, 1)
    chance = torch.rand(len(blocks), 2, samples, device=place) if seed is None else uniform(seed, branch)
    return (((chance >= rates) / (1 - rates))[..., None, None]).to(device).unbind()


def stream(seed: Tensor | None, number: int) -> Tensor | None:
    """Each sample's key for an independent stream of chance: of blocks beside the encoder's."""
    return None if seed is None else random_bits(seed, number)


def init_linear(module: nn.Module) -> None:
    """Truncated normal 0.02 for the weight of a linear layer, 0 for its bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_xavier(module: nn.Module) -> None:
    """Uniform in ± √(6 / (inputs + outputs)) for the weight of a linear layer, 0 for its bias: MAE's and CAE's."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def sincos(grid: tuple[int, int], dim: int) -> Tensor:
    """(1 + L, D) fixed 2-D table of MAE (arXiv 2111.06377): sin, cos of the column, then of the row; CLS is zero."""
    if dim % 4:
        raise ValueError(f"sin-cos positions need a width divisible by 4, got {dim}")
    frequency = torch.exp(torch.arange(dim // 4, dtype=torch.float64) * (-math.log(10000.0) / (dim // 4)))
    row, column = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    angles = [place.flatten()[:, None] * frequency for place in (column, row)]
    table = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    return torch.cat([table.new_zeros(1, dim), table]).float()


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _tiles(img_size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    if any(image % patch for image, patch in zip(img_size, patch_size, strict=True)):
        raise ValueError(f"patches of {patch_size} pixels do not tile an image of {img_size} pixels")
    return img_size[0] // patch_size[0], img_size[1] // patch_size[1]
