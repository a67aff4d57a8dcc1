"""Vision transformer (Dosovitskiy et al., arXiv 2010.11929) with timm's parameter names.

``embed`` turns an image into one row per position, ``run`` sends rows through the blocks, and ``forward`` does both.
Objectives call ``embed``, build their own rows and mask, and call ``run``.

Legend: B images, C channels, H × W pixels, L patches, D width, R rows, K ≤ R rows that are read, Q ≤ R rows that are
returned, N heads, E = D / N.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mapet.method.layer_scale import LayerScale, scaled
from mapet.method.windows import Seen, attend, readable
from mapet.utils.linear import Linear, linear
from mapet.utils.rng import random_bits, uniform

SIZES: dict[str, dict[str, int]] = {
    "vit_tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "vit_small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "vit_base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "vit_large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}


class Encoder(nn.Module):
    """ViT with one class token; arguments and parameters are named as in timm's ``VisionTransformer``.

    Args:
        img_size: image size in pixels, or (height, width).
        patch_size: patch size in pixels, or (height, width).
        mlp_ratio: hidden width of the MLP as a multiple of ``embed_dim``.
        init_values: initial layer scale; None disables layer scale.
        drop_path_rate: stochastic depth rate of the last block; rates grow linearly from 0. One draw per sample and
            branch, shared by all rows of the sample.
        pos_embed: ``"learn"``, or ``"sincos"`` for MAE's fixed table.
        global_pool: input of the head: ``"token"`` = CLS, ``"avg"`` = mean of the patches, followed by ``fc_norm``.
        num_classes: number of outputs of the head; 0 for no head.

    Raises:
        ValueError: ``patch_size`` does not divide ``img_size``, or ``num_heads`` does not divide ``embed_dim``.
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
        self.grid = _grid(self.img_size, self.patch_size)
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
        self.head = Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        self.reset_parameters()

    @property
    def length(self) -> int:
        """L, the number of patches."""
        return self.grid[0] * self.grid[1]

    def reset_parameters(self) -> None:
        """Initialise as timm and the published code: truncated normal with std 0.02, class token with std 1e-6."""
        nn.init.normal_(self.cls_token, std=1e-6)
        if self.pos_embed.requires_grad:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        else:
            self.pos_embed.data[0] = sincos(self.grid, self.embed_dim)
        self.apply(init_linear)

    def embed(self, images: Tensor) -> Tensor:
        """(B, C, H, W) → (B, 1 + L, D): CLS and patches, without position embeddings."""
        patches = self.patch_embed(images)
        return torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)

    def run(self, rows: Tensor, visible: Seen = None, last: int | None = None, seed: Tensor | None = None) -> Tensor:
        """Apply all blocks and the final norm; returns (B, R, D), or (B, Q, D) with ``last`` = Q.

        Args:
            rows: (B, R, D), position embeddings added.
            visible: which of R rows reads which of the first K, or an (R, K) bool mask. None: all of them.
            last: return only the last Q rows; the last block computes no others.
            seed: (B,) int64, one seed per sample for stochastic depth; None draws from torch's generator.
        """
        scales = drop_path_scale(self.blocks, self.drop_path_rate, rows.shape[0], seed)
        return self.norm(run_blocks(self.blocks, rows, visible, last, scales))

    def forward(self, images: Tensor, seed: Tensor | None = None) -> Tensor:
        """(B, C, H, W) → (B, 1 + L, D), CLS first, after the final norm (identity with ``global_pool="avg"``)."""
        return self.run(self.embed(images) + self.pos_embed, seed=seed)

    def forward_head(self, features: Tensor) -> Tensor:
        """(B, 1 + L, D) → (B, num_classes), or pooled (B, D) without a head."""
        pooled = features[:, 1:].mean(dim=1) if self.global_pool == "avg" else features[:, 0]
        return self.head(self.fc_norm(pooled))


class Classifier(Encoder):
    """Encoder followed by its head.

    Attributes:
        classes: class names in the order of the logits; empty if unknown.
        crop_pct: share of an image's shorter side that tests crop.
    """

    classes: tuple[str, ...] = ()
    crop_pct: float = 1.0

    def forward(self, images: Tensor, seed: Tensor | None = None) -> Tensor:
        """(B, C, H, W) → (B, num_classes) logits."""
        return self.forward_head(super().forward(images, seed))


class PatchEmbed(nn.Module):
    """Linear patch embedding, patches in row-major order."""

    def __init__(self, patch_size: tuple[int, int], in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) → (B, L, D)."""
        # The convolution as a matrix product: up to twice as fast for small patches.
        height, width = self.proj.kernel_size
        batch, channels, rows, columns = images.shape
        patches = images.reshape(batch, channels, rows // height, height, columns // width, width)
        pixels = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return linear(pixels, self.proj.weight.flatten(1), self.proj.bias)


class Block(nn.Module):
    """Pre-norm attention and MLP, each with optional layer scale and stochastic depth."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, init_values: float | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.ls1 = LayerScale(dim, init_values) if init_values else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls2 = LayerScale(dim, init_values) if init_values else nn.Identity()

    def forward(
        self,
        rows: Tensor,
        visible: Seen = None,
        last: int | None = None,
        scale: Tensor | None = None,
    ) -> Tensor:
        """(B, R, D) → (B, R, D), or (B, Q, D); ``scale`` (2, B, 1, 1) multiplies the branches (stochastic depth)."""
        start = 0 if last is None else rows.shape[1] - last
        attn_out = self.attn(self.norm1(rows), visible, start, self.ls1)
        rows = rows[:, start:] + (attn_out if scale is None else attn_out * scale[0])
        mlp_out = self.mlp(self.norm2(rows), self.ls2)
        return rows + (mlp_out if scale is None else mlp_out * scale[1])


class Attention(nn.Module):
    """Multi-head self-attention; computes keys and values of the first K rows and queries of the returned rows only."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide a width of {dim}")
        self.heads = heads
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, rows: Tensor, visible: Seen, start: int, scale: nn.Module | None = None) -> Tensor:
        """(B, R, D) → (B, R − start, D), times the factors of ``scale``."""
        dim = rows.shape[-1]
        q_weight, kv_weight = torch.split(self.qkv.weight, [dim, 2 * dim])
        q_bias, kv_bias = torch.split(self.qkv.bias, [dim, 2 * dim])
        if torch.is_autocast_enabled(rows.device.type):
            rows = rows.to(torch.get_autocast_dtype(rows.device.type))  # once, not for each product
        q_BNQE = self._split_heads(linear(rows[:, start:], q_weight, q_bias))
        k_BNKE, v_BNKE = map(self._split_heads, linear(readable(rows, visible), kv_weight, kv_bias).chunk(2, dim=-1))
        out_BNQE = attend(q_BNQE, k_BNKE, v_BNKE, visible, start)
        return scaled(self.proj, out_BNQE.transpose(1, 2).flatten(2), scale)

    def _split_heads(self, rows: Tensor) -> Tensor:
        """(B, R, D) → (B, N, R, E)."""
        return rows.view(*rows.shape[:2], self.heads, -1).transpose(1, 2)


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, rows: Tensor, scale: nn.Module | None = None) -> Tensor:
        """(B, R, D) → (B, R, D), times the factors of ``scale``."""
        return scaled(self.fc2, F.gelu(self.fc1(rows)), scale)


def run_blocks(
    blocks: nn.ModuleList,
    rows: Tensor,
    visible: Seen = None,
    last: int | None = None,
    scales: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """Apply the blocks in sequence; ``scales`` from ``drop_path_scale``, other arguments as in ``Encoder.run``."""
    scales = scales or [None] * len(blocks)
    for block, scale in zip(blocks[:-1], scales, strict=False):
        rows = block(rows, visible, scale=scale)
    return blocks[-1](rows, visible, last, scales[-1])


def drop_path_scale(blocks: nn.ModuleList, rate: float, samples: int, seed: Tensor | None) -> Sequence[Tensor | None]:
    """Draw stochastic depth (Huang et al., arXiv 1603.09382): per block (2, B, 1, 1), each 0 or 1 / (1 − block rate).

    Rates grow linearly from 0 to ``rate`` at the last block. Nothing is dropped (None per block) in evaluation mode.
    """
    if not rate or not blocks.training:
        return [None] * len(blocks)
    device = next(blocks.parameters()).device
    rng_device = device if seed is None else seed.device
    rates = torch.linspace(0, rate, len(blocks), device=rng_device)[:, None, None]
    branch = torch.arange(2 * len(blocks), device=rng_device).view(-1, 2, 1)
    draw = torch.rand(len(blocks), 2, samples, device=rng_device) if seed is None else uniform(seed, branch)
    return (((draw >= rates) / (1 - rates))[..., None, None]).to(device).unbind()


def fork_seed(seed: Tensor | None, stream: int) -> Tensor | None:
    """Derive the (B,) seeds of an independent random stream, for blocks other than the encoder's."""
    return None if seed is None else random_bits(seed, stream)


def init_linear(module: nn.Module) -> None:
    """Initialise a linear layer with a truncated normal of std 0.02 and zero bias; ignore other modules."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_xavier(module: nn.Module) -> None:
    """Initialise a linear layer as MAE and CAE: uniform in ± √(6 / (fan_in + fan_out)), zero bias."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def sincos(grid: tuple[int, int], dim: int) -> Tensor:
    """MAE's fixed 2-D table (arXiv 2111.06377): (1 + L, D), sin, cos of the column, then of the row; CLS is 0."""
    if dim % 4:
        raise ValueError(f"sin-cos positions need a width divisible by 4, got {dim}")
    frequency = torch.exp(torch.arange(dim // 4, dtype=torch.float64) * (-math.log(10000.0) / (dim // 4)))
    row, column = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    angles = [coordinate.flatten()[:, None] * frequency for coordinate in (column, row)]
    table = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    return torch.cat([table.new_zeros(1, dim), table]).float()


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _grid(img_size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    if any(image % patch for image, patch in zip(img_size, patch_size, strict=True)):
        raise ValueError(f"patches of {patch_size} pixels do not tile an image of {img_size} pixels")
    return img_size[0] // patch_size[0], img_size[1] // patch_size[1]
