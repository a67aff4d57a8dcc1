"""Masked autoencoding (MAE): the encoder sees only the context, a small decoder predicts the pixels of masked patches.

He et al., "Masked Autoencoders Are Scalable Vision Learners", arXiv 2111.06377. Masking is slicing of the order: the
encoder reads ``order[:, :context]``, the decoder predicts ``order[:, context:]``.

Legend: B images, C channels, H × W pixels, L patches, M = 1 + L − context masked patches, D encoder width, E decoder
width, P = C · pixels of a patch.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mapet.method.cost import Counted, Work, block_work, embed_work, head_work
from mapet.method.encoder import Block, Encoder, init_xavier, run_blocks, sincos
from mapet.method.order import gather_rows
from mapet.utils.linear import Linear

DECODERS: dict[str, dict[str, int]] = {
    "vit_tiny": {"decoder_embed_dim": 96, "decoder_depth": 1, "decoder_num_heads": 3},  # MAE-Lite's (arXiv 2205.14443)
    "vit_small": {"decoder_embed_dim": 192, "decoder_depth": 1, "decoder_num_heads": 6},  # MAE-Lite's
    "vit_base": {"decoder_embed_dim": 512, "decoder_depth": 8, "decoder_num_heads": 16},
    "vit_large": {"decoder_embed_dim": 512, "decoder_depth": 8, "decoder_num_heads": 16},
}


class MAE(Counted, nn.Module):
    """Predict the pixels of masked patches.

    The encoder keeps its own initialisation, so that all objectives start alike. The decoder is initialised as
    published: Xavier-uniform linear layers, mask token normal with std 0.02, fixed sin-cos position embeddings.

    Args:
        encoder: the network to pre-train.
        context: number of given positions, CLS included.
        decoder_embed_dim: decoder width E, divisible by 4; ``DECODERS`` has the published decoders.
        decoder_depth: number of decoder blocks, ≥ 1.
        decoder_num_heads: number of decoder attention heads.
        normalize_pixels: normalise each patch's target to mean 0 and variance 1.

    Raises:
        ValueError: ``context`` is not in 1 … L, or the decoder sizes do not match each other.
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
        self.decoder_embed = Linear(encoder.embed_dim, decoder_embed_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_embed_dim))
        self.decoder_pos_embed = nn.Parameter(sincos(encoder.grid, decoder_embed_dim)[None], requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_embed_dim, decoder_num_heads, encoder.mlp_ratio, None) for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_embed_dim, eps=1e-6)
        self.decoder_pred = Linear(decoder_embed_dim, encoder.patch_embed.proj.weight[0].numel())
        nn.init.normal_(self.mask_token, std=0.02)
        for module in (self.decoder_embed, self.decoder_blocks, self.decoder_pred):
            module.apply(init_xavier)

    def forward(
        self, images: Tensor, tokens: Tensor | None, order: Tensor, seed: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compute the loss of one training step.

        Args:
            images: (B, C, H, W) float, normalised.
            tokens: not used.
            order: (B, 1 + L) int64 positions, CLS first (see ``order.py``); the first ``context`` are given.
            seed: (B,) int64, one seed per sample for stochastic depth; None draws from torch's generator.

        Returns:
            ``loss``: mean squared error over all pixels of all masked patches, a float32 scalar.
        """
        return {"loss": F.mse_loss(self.predict_pixels(images, order, seed).float(), self.target(images, order))}

    def latents(self, images: Tensor, order: Tensor, seed: Tensor | None = None) -> Tensor:
        """Return (B, context, D), the encoder's output for CLS and the context patches."""
        rows = self.encoder.embed(images) + self.encoder.pos_embed
        return self.encoder.run(gather_rows(rows, order[:, : self.context]), seed=seed)

    def predict_pixels(self, images: Tensor, order: Tensor, seed: Tensor | None = None) -> Tensor:
        """Return (B, M, P), the predicted pixels of masked patches by index in the order, in units of ``target``."""
        context = self.decoder_embed(self.latents(images, order, seed))
        masked = self.mask_token.to(context.dtype).expand(len(order), order.shape[1] - self.context, -1)
        rows = torch.cat([context, masked], dim=1) + F.embedding(order, self.decoder_pos_embed[0])
        return self.decoder_pred(self.decoder_norm(run_blocks(self.decoder_blocks, rows, last=masked.shape[1])))

    def target(self, images: Tensor, order: Tensor) -> Tensor:
        """Return (B, M, P) float32, the pixels of masked patches, normalised per patch if ``normalize_pixels``."""
        pixels = gather_rows(patchify(images.float(), self.encoder.patch_size), order[:, self.context :] - 1)
        if not self.normalize_pixels:
            return pixels
        variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
        return (pixels - mean) / (variance + 1e-6).sqrt()

    def work(self, training: bool = False) -> Work:
        """Return the cost per image (see ``cost.py``): forward pass, or forward and backward with ``training``."""
        dim, decoder_dim = self.encoder.embed_dim, self.decoder_embed.out_features
        ratio, rows = self.encoder.mlp_ratio, 1 + self.encoder.length
        num_masked, depth = rows - self.context, len(self.decoder_blocks)
        encoder = block_work(dim, ratio, self.context, self.context) * len(self.encoder.blocks)
        decoder = block_work(decoder_dim, ratio, rows, rows) * (depth - 1)
        decoder += block_work(decoder_dim, ratio, num_masked, rows)
        ends = Work(linear=self.context * dim * decoder_dim)
        ends += head_work(decoder_dim, self.decoder_pred.out_features, num_masked)
        return (embed_work(self.encoder) + encoder + decoder + ends) * (3 if training else 1)


def patchify(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) → (B, L, P): patches in row-major order; inside each, pixels in row-major order, channel last."""
    height, width = patch_size
    patches = images.unfold(2, height, height).unfold(3, width, width)  # (B, C, rows, columns, height, width)
    return patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
