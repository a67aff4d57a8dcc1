"""Masked autoencoding: the encoder sees the context alone, a small decoder paints the hidden patches (MAE).

He et al., "Masked Autoencoders Are Scalable Vision Learners", arXiv 2111.06377. The order's slices do all the masking:
``order[:, :context]`` is encoded, ``order[:, context:]`` is painted.

Legend: B images, L patches, M = 1 + L − context hidden ones, D width, E width of the decoder, P = height · width ·
channels of a patch.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mapet.method.cost import Counted, Work, block_work, embed_work, head_work
from mapet.method.encoder import Block, Encoder, init_xavier, run_blocks, sincos
from mapet.method.order import gather_rows

DECODERS: dict[str, dict[str, int]] = {
    "vit_tiny": {"decoder_embed_dim": 96, "decoder_depth": 1, "decoder_num_heads": 3},  # MAE-Lite's (arXiv 2205.14443)
    "vit_small": {"decoder_embed_dim": 192, "decoder_depth": 1, "decoder_num_heads": 6},  # MAE-Lite's
    "vit_base": {"decoder_embed_dim": 512, "decoder_depth": 8, "decoder_num_heads": 16},
    "vit_large": {"decoder_embed_dim": 512, "decoder_depth": 8, "decoder_num_heads": 16},
}


class MAE(Counted, nn.Module):
    """Predict the pixels of hidden patches.

    The encoder keeps its own initialisation, so that objectives can be compared from the same start; what is added
    here starts as published: Xavier-uniform linear layers, mask token normal 0.02, fixed sin-cos positions.

    Args:
        encoder: what is kept after pre-training.
        context: places of the order that are given, CLS included.
        decoder_embed_dim: E, divisible by 4; ``DECODERS`` has the published decoders.
        decoder_depth: blocks of the decoder, at least 1.
        decoder_num_heads: its attention heads.
        normalize_pixels: whether each patch's target has mean 0 and variance 1.

    Raises:
        ValueError: a context that leaves nothing to predict, or decoder sizes that do not fit one another.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        context: int,
        decoder_embed_dim: int,
        decoder_depth: int,
        decoder_num_heads: int,
        normalize_pixels: bool = True,
    ) -> None:
        super().__init__()
        if not 1 <= context <= encoder.length:
            raise ValueError(f"a context of {context} must lie in 1 … {encoder.length}, CLS included")
        if decoder_depth < 1:
            raise ValueError("the decoder needs at least one block")
        self.encoder, self.context, self.normalize_pixels = encoder, context, normalize_pixels
        self.decoder_embed = nn.Linear(encoder.embed_dim, decoder_embed_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_embed_dim))
        self.decoder_pos_embed = nn.Parameter(sincos(encoder.grid, decoder_embed_dim)[None], requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_embed_dim, decoder_num_heads, encoder.mlp_ratio, None) for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_embed_dim, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_embed_dim, encoder.patch_embed.proj.weight[0].numel())
        nn.init.normal_(self.mask_token, std=0.02)
        for part in (self.decoder_embed, self.decoder_blocks, self.decoder_pred):
            part.apply(init_xavier)

    def latents(self, images: Tensor, order: Tensor, seed: Tensor | None = None) -> Tensor:
        """(B, context, D): CLS and the given patches, encoded; no hidden pixel gets here."""
        rows = self.encoder.embed(images) + self.encoder.pos_embed
        return self.encoder.run(gather_rows(rows, order[:, : self.context]), seed=seed)

    def pixels(self, images: Tensor, order: Tensor, seed: Tensor | None = None) -> Tensor:
        """Painted hidden patches.

        Args:
            images: (B, C, height, width) float, normalised.
            order: (B, 1 + L) int64 positions, CLS first (``order.py``); the first ``context`` are given.
            key: (B,) int64, each sample's own seed for stochastic depth; without it torch's generator draws.

        Returns:
            (B, M, P) in the order's own sequence, in units of the target: see ``normalize_pixels``.
        """
        given = self.decoder_embed(self.latents(images, order, seed))
        hidden = self.mask_token.to(given.dtype).expand(len(order), order.shape[1] - self.context, -1)
        rows = torch.cat([given, hidden], dim=1) + F.embedding(order, self.decoder_pos_embed[0])
        return self.decoder_pred(self.decoder_norm(run_blocks(self.decoder_blocks, rows, last=hidden.shape[1])))

    def target(self, images: Tensor, order: Tensor) -> Tensor:
        """(B, M, P) float32: the hidden patches' pixels, normalised patch by patch where that is asked for."""
        pixels = gather_rows(patchify(images.float(), self.encoder.patch_size), order[:, self.context :] - 1)
        if not self.normalize_pixels:
            return pixels
        variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
        return (pixels - mean) / (variance + 1e-6).sqrt()

    def forward(
        self, images: Tensor, tokens: Tensor | None, order: Tensor, seed: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``loss``: mean squared error over all pixels of all hidden patches, a scalar; ``tokens`` is not read."""
        return {"loss": F.mse_loss(self.pixels(images, order, seed).float(), self.target(images, order))}

    def work(self, training: bool = False) -> Work:
        """The work on one image (``cost.py``): of its forward pass, or of forward and backward together."""
        inner, outer, patch = self.encoder.embed_dim, self.decoder_embed.out_features, self.decoder_pred.out_features
        ratio, rows = self.encoder.mlp_ratio, 1 + self.encoder.length
        hidden, depth = rows - self.context, len(self.decoder_blocks)
        encode = block_work(inner, ratio, self.context, self.context) * len(self.encoder.blocks)
        decode = block_work(outer, ratio, rows, rows) * (depth - 1) + block_work(outer, ratio, hidden, rows)
        ends = Work(linear=self.context * inner * outer) + head_work(outer, patch, hidden)
        return (embed_work(self.encoder) + encode + decode + ends) * (3 if training else 1)


def patchify(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """(B, C, height, width) → (B, L, P): patches row by row; inside, row by row too, the channel last."""
    height, width = patch_size
    patches = images.unfold(2, height, height).unfold(3, width, width)  # (B, C, rows, columns, height, width)
    return patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
