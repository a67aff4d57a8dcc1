"""Context autoencoder (CAE): predict the latents of masked patches from the context, and their tokens from the latents.

Chen et al., "Context Autoencoder for Self-Supervised Representation Learning", arXiv 2202.03026. Three parts join the
encoder, which sees only the context: the *regressor* predicts the encoder's output for the masked patches, the
*decoder* predicts their tokens from it, and the *teacher*, the encoder applied to the masked patches, gives the
regressor's target.

Legend: B images, L patches, M = 1 + L − context masked patches, D encoder width, E width of regressor and decoder,
V tokens in the vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mapet.method.cost import Counted, Work, block_work, embed_work, head_work
from mapet.method.cross_entropy import chunked_cross_entropy
from mapet.method.encoder import (
    Block,
    Encoder,
    Mlp,
    drop_path_scale,
    fork_seed,
    init_xavier,
    run_blocks,
    sincos,
)
from mapet.method.layer_scale import LayerScale, scaled
from mapet.method.order import gather_rows
from mapet.utils.linear import Linear

TEACHER, REGRESSOR, DECODER = 1, 2, 3  # independent random streams of each sample


class CAE(Counted, nn.Module):
    """Predict the visual tokens of masked patches through their latents.

    The published teacher is a copy of the encoder that lags one optimiser step behind (momentum 0, copied after each
    pass). Here the encoder itself runs without gradient: no second set of weights, and micro-batches give the same
    gradient as the whole batch. As published, the teacher has its own draws of stochastic depth.

    The encoder keeps its own initialisation, so that all objectives start alike. The other parts are initialised as
    published: Xavier-uniform linear layers, mask token normal with std 0.02 cut at ± 0.02, the encoder's layer scale
    and stochastic depth. Regressor and decoder use fixed sin-cos position embeddings: of the row, then of the column.

    Args:
        encoder: the network to pre-train.
        context: number of given positions, CLS included; at least CLS and one patch.
        vocabulary: number of different tokens V.
        regressor_depth: number of cross-attention blocks, ≥ 1.
        decoder_depth: number of self-attention blocks, ≥ 1.
        decoder_embed_dim: width E, divisible by 4; None: the encoder's width.
        decoder_num_heads: number of attention heads of regressor and decoder; None: the encoder's.
        alignment_weight: weight of the squared error between regressor and teacher.

    Raises:
        ValueError: ``context`` is not in 2 … L, or the decoder sizes do not match each other.
    """

    positions: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        context: int,
        vocabulary: int,
        regressor_depth: int = 4,
        decoder_depth: int = 4,
        decoder_embed_dim: int | None = None,
        decoder_num_heads: int | None = None,
        alignment_weight: float = 2.0,
    ) -> None:
        super().__init__()
        if not 2 <= context <= encoder.length:
            raise ValueError(f"a context of {context} must lie in 2 … {encoder.length}, CLS included")
        if min(regressor_depth, decoder_depth) < 1:
            raise ValueError("regressor and decoder need at least one block each")
        dim, heads = decoder_embed_dim or encoder.embed_dim, decoder_num_heads or encoder.num_heads
        shape = (dim, heads, encoder.mlp_ratio, encoder.init_values)
        self.encoder, self.context, self.alignment_weight = encoder, context, alignment_weight
        self.encoder_to_decoder = (
            nn.Identity()
            if dim == encoder.embed_dim
            else nn.Sequential(Linear(encoder.embed_dim, dim), nn.LayerNorm(dim, eps=1e-6))
        )
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        self.regressor_blocks = nn.ModuleList(RegressorBlock(*shape) for _ in range(regressor_depth))
        self.regressor_norm = nn.LayerNorm(dim, eps=1e-6)
        self.decoder_blocks = nn.ModuleList(Block(*shape) for _ in range(decoder_depth))
        self.decoder_norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = Linear(dim, vocabulary)
        self.register_buffer("positions", sincos(encoder.grid, dim).roll(dim // 2, dims=1), persistent=False)
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        for module in (self.encoder_to_decoder, self.regressor_blocks, self.decoder_blocks, self.head):
            module.apply(init_xavier)

    @property
    def vocabulary(self) -> int:
        """V, the number of different tokens."""
        return self.head.out_features

    def forward(self, images: Tensor, tokens: Tensor, order: Tensor, seed: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the losses of one training step.

        Args:
            images: (B, C, H, W) float, normalised.
            tokens: (B, L) int64, one token per patch in row-major order.
            order: (B, 1 + L) int64 positions, CLS first (see ``order.py``); the first ``context`` are given.
            seed: (B,) int64, one seed per sample for stochastic depth; None draws from torch's generator.

        Returns:
            ``token_loss``: mean cross-entropy over all masked patches, in nats; ``alignment_loss``: mean squared error
            between regressor and teacher, times ``alignment_weight``; ``loss``: their sum; ``accuracy``: share of
            masked patches whose token has the largest logit. All are float32 scalars.
        """
        target = tokens.gather(1, order[:, self.context :] - 1)
        latent_pred, latent_target = self.latents(images, order, seed)
        token_loss, accuracy = chunked_cross_entropy(self.decode(latent_pred, order, seed), self.head, target)
        alignment_loss = self.alignment_weight * F.mse_loss(latent_pred.float(), latent_target.float())
        losses = {"token_loss": token_loss, "alignment_loss": alignment_loss}
        return {"loss": token_loss + alignment_loss, **losses, "accuracy": accuracy}

    def latents(self, images: Tensor, order: Tensor, seed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the regressor's and the teacher's latents of the masked patches, (B, M, E) by index in the order."""
        rows = self.encoder.embed(images) + self.encoder.pos_embed
        context = self._encode(rows, order[:, : self.context], seed)
        with torch.no_grad():
            cls_and_masked = torch.cat([order[:, :1], order[:, self.context :]], dim=1)
            latent_target = self._encode(rows, cls_and_masked, fork_seed(seed, TEACHER))
        return self._regress(context, order, seed), latent_target

    def decode(self, latents: Tensor, order: Tensor, seed: Tensor | None = None) -> Tensor:
        """(B, M, E) → (B, M, E): the decoder's blocks and norm; ``head`` maps its output to logits."""
        rows = latents + F.embedding(order[:, self.context :], self.positions)
        scales = self._drop_path_scale(self.decoder_blocks, len(rows), fork_seed(seed, DECODER))
        return self.decoder_norm(run_blocks(self.decoder_blocks, rows, scales=scales))

    def work(self, training: bool = False) -> Work:
        """Return the cost per image (see ``cost.py``): forward pass, or forward and backward with ``training``."""
        dim, ratio, num_context = self.head.in_features, self.encoder.mlp_ratio, self.context - 1
        num_masked = self.encoder.length - num_context
        regressor = block_work(dim, ratio, num_masked, self.encoder.length) * len(self.regressor_blocks)
        decoder = block_work(dim, ratio, num_masked, num_masked) * len(self.decoder_blocks)
        student = embed_work(self.encoder) + self._encoder_work(num_context) + regressor + decoder
        student += head_work(dim, self.vocabulary, num_masked)
        return student * (3 if training else 1) + self._encoder_work(num_masked)  # the teacher has no backward pass

    def _encode(self, rows: Tensor, positions: Tensor, seed: Tensor | None) -> Tensor:
        """(B, 1 + L, D) rows and (B, 1 + K) positions, CLS first → (B, K, E), the patches' latents."""
        states = self.encoder.run(gather_rows(rows, positions), last=positions.shape[1] - 1, seed=seed)
        return self.encoder_to_decoder(states)

    def _regress(self, context: Tensor, order: Tensor, seed: Tensor | None) -> Tensor:
        """(B, context − 1, E) → (B, M, E): mask tokens through the cross-attention blocks, then the norm."""
        positions = F.embedding(order[:, 1:], self.positions)
        rows = self.mask_token.to(context.dtype).expand(len(context), order.shape[1] - self.context, -1)
        scales = self._drop_path_scale(self.regressor_blocks, len(rows), fork_seed(seed, REGRESSOR))
        for block, scale in zip(self.regressor_blocks, scales, strict=True):
            rows = block(rows, context, positions, scale)
        return self.regressor_norm(rows)

    def _drop_path_scale(self, blocks: nn.ModuleList, samples: int, seed: Tensor | None) -> Sequence[Tensor | None]:
        return drop_path_scale(blocks, self.encoder.drop_path_rate, samples, seed)

    def _encoder_work(self, patches: int) -> Work:
        dim, ratio, depth = self.encoder.embed_dim, self.encoder.mlp_ratio, len(self.encoder.blocks)
        project = 0 if isinstance(self.encoder_to_decoder, nn.Identity) else patches * dim * self.head.in_features
        last = block_work(dim, ratio, patches, 1 + patches)
        return block_work(dim, ratio, 1 + patches, 1 + patches) * (depth - 1) + last + Work(linear=project)


class RegressorBlock(nn.Module):
    """Masked rows attend to context rows and to each other; ``norm2`` replaces the residual stream, as published."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, init_values: float | None) -> None:
        super().__init__()
        self.norm1_q = nn.LayerNorm(dim, eps=1e-6)
        self.norm1_k = nn.LayerNorm(dim, eps=1e-6)
        self.norm1_v = nn.LayerNorm(dim, eps=1e-6)
        self.cross_attn = CrossAttention(dim, heads)
        self.ls1 = LayerScale(dim, init_values) if init_values else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls2 = LayerScale(dim, init_values) if init_values else nn.Identity()

    def forward(self, rows: Tensor, context: Tensor, positions: Tensor, scale: Tensor | None = None) -> Tensor:
        """Apply the block.

        Args:
            rows: (B, M, E), the masked patches.
            context: (B, L − M, E), the context patches, the same for all blocks.
            positions: (B, L, E), embeddings of context, then masked positions; added to queries and keys, not values.
            scale: (2, B, 1, 1), factors of the two branches, for stochastic depth.

        Returns:
            (B, M, E).
        """
        readable = torch.cat([context, rows], dim=1)
        query = self.norm1_q(rows + positions[:, context.shape[1] :])
        key, value = self.norm1_k(readable + positions), self.norm1_v(readable)
        attn_out = self.cross_attn(query, key, value, self.ls1)
        rows = self.norm2(rows + (attn_out if scale is None else attn_out * scale[0]))
        mlp_out = self.mlp(rows, self.ls2)
        return rows + (mlp_out if scale is None else mlp_out * scale[1])


class CrossAttention(nn.Module):
    """Multi-head cross-attention; keys have no bias, as it would not change the softmax."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide a width of {dim}")
        self.heads = heads
        self.q = Linear(dim, dim)
        self.k = Linear(dim, dim, bias=False)
        self.v = Linear(dim, dim)
        self.proj = Linear(dim, dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scale: nn.Module | None = None) -> Tensor:
        """(B, M, E), (B, L, E), (B, L, E) → (B, M, E), times the factors of ``scale``."""
        q, k, v = (
            rows.unflatten(-1, (self.heads, -1)).transpose(1, 2) for rows in (self.q(query), self.k(key), self.v(value))
        )
        return scaled(self.proj, F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), scale)
