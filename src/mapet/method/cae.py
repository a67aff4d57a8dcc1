"""The context autoencoder: predict hidden patches' representations from the context, and their tokens from these (CAE).

Chen et al., "Context Autoencoder for Self-Supervised Representation Learning", arXiv 2202.03026. Three parts beside the
encoder, which sees the context alone: a *regressor* guesses what the encoder would have made of the hidden patches, a
*decoder* reads tokens off the guess, and the *teacher*, the encoder itself on the hidden patches, says how good it was.

Legend: B images, L patches, M = 1 + L − context hidden ones, D width, E width of regressor and decoder, V tokens.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mapet.method.cost import Counted, Work, block_work, embed_work, head_work
from mapet.method.cross_entropy import chunked_cross_entropy
from mapet.method.encoder import (
    Block,
    Encoder,
    LayerScale,
    Mlp,
    drop_path_scale,
    init_xavier,
    run_blocks,
    sincos,
    stream,
)
from mapet.method.order import gather_rows

TEACHER, REGRESSOR, DECODER = 1, 2, 3  # independent streams of each sample's chance


class CAE(Counted, nn.Module):
    """Predict the visual tokens of hidden patches through their representations.

    The published teacher is a copy of the encoder that lags one step of the optimiser behind it (momentum 0, copied
    after each pass). Here the encoder itself is run without gradient: no second set of weights, and a batch cut into
    parts gives what the whole gives. As published, the teacher has its own draws of stochastic depth.

    The encoder keeps its own initialisation, so that objectives can be compared from the same start; what is added
    here starts as published: Xavier-uniform linear layers, mask token normal 0.02 cut at 0.02, the encoder's layer
    scale and stochastic depth. Positions in regressor and decoder are fixed sin-cos tables: of the row, then column.

    Args:
        encoder: what is kept after pre-training.
        context: places of the order that are given, CLS included: CLS and at least one patch.
        vocabulary: number of different tokens V.
        regressor_depth: cross-attention blocks, at least 1.
        decoder_depth: self-attention blocks, at least 1.
        decoder_embed_dim: E, divisible by 4; None: the encoder's width.
        decoder_num_heads: attention heads of regressor and decoder; None: the encoder's.
        alignment_weight: factor of the squared error between guess and teacher.

    Raises:
        ValueError: a context that gives no patch or hides none, or decoder sizes that do not fit one another.
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
            else nn.Sequential(nn.Linear(encoder.embed_dim, dim), nn.LayerNorm(dim, eps=1e-6))
        )
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        self.regressor_blocks = nn.ModuleList(RegressorBlock(*shape) for _ in range(regressor_depth))
        self.regressor_norm = nn.LayerNorm(dim, eps=1e-6)
        self.decoder_blocks = nn.ModuleList(Block(*shape) for _ in range(decoder_depth))
        self.decoder_norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, vocabulary)
        self.register_buffer("positions", sincos(encoder.grid, dim).roll(dim // 2, dims=1), persistent=False)
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        for part in (self.encoder_to_decoder, self.regressor_blocks, self.decoder_blocks, self.head):
            part.apply(init_xavier)

    @property
    def vocabulary(self) -> int:
        """V, the number of different tokens."""
        return self.head.out_features

    def latents(self, images: Tensor, order: Tensor, seed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the regressor guesses and what the teacher answers for every hidden patch.

        Args:
            images: (B, C, height, width) float, normalised.
            order: (B, 1 + L) int64 positions, CLS first (``order.py``); the first ``context`` are given.
            key: (B,) int64, each sample's own seed for stochastic depth; without it torch's generator draws.

        Returns:
            Two times (B, M, E) in the order's own sequence, the teacher's without gradient.
        """
        rows = self.encoder.embed(images) + self.encoder.pos_embed
        given = self._encoded(rows, order[:, : self.context], seed)
        with torch.no_grad():
            hidden = torch.cat([order[:, :1], order[:, self.context :]], dim=1)
            target = self._encoded(rows, hidden, stream(seed, TEACHER))
        return self._regressed(given, order, seed), target

    def decode(self, latent: Tensor, order: Tensor, seed: Tensor | None = None) -> Tensor:
        """(B, M, E) representations of the hidden patches → (B, M, V) scores of every token."""
        return self.head(self._decoded(latent, order, seed))

    def forward(self, images: Tensor, tokens: Tensor, order: Tensor, seed: Tensor | None = None) -> dict[str, Tensor]:
        """The training step's figures.

        Args:
            images, order, key: as in ``latents``.
            tokens: (B, L) int64, one token per patch in natural patch order.

        Returns:
            ``token_loss``: mean cross-entropy over all hidden patches, in nats; ``alignment_loss``: the mean squared
            error between guess and teacher, times its weight; ``loss``: their sum; ``accuracy``: the share of hidden
            patches whose token scores highest. All scalars.
        """
        target = tokens.gather(1, order[:, self.context :] - 1)
        guess, answer = self.latents(images, order, seed)
        token_loss, accuracy = chunked_cross_entropy(self._decoded(guess, order, seed), self.head, target)
        alignment = self.alignment_weight * F.mse_loss(guess.float(), answer.float())
        figures = {"token_loss": token_loss, "alignment_loss": alignment, "accuracy": accuracy}
        return {"loss": token_loss + alignment, **figures}

    def work(self, training: bool = False) -> Work:
        """The work on one image (``cost.py``): of its forward pass, or of forward and backward together."""
        dim, ratio, given = self.head.in_features, self.encoder.mlp_ratio, self.context - 1
        hidden = self.encoder.length - given
        guess = block_work(dim, ratio, hidden, self.encoder.length) * len(self.regressor_blocks)
        decode = block_work(dim, ratio, hidden, hidden) * len(self.decoder_blocks)
        learned = embed_work(self.encoder) + self._encoding_work(given) + guess + decode
        learned += head_work(dim, self.vocabulary, hidden)
        return learned * (3 if training else 1) + self._encoding_work(hidden)

    def _encoded(self, rows: Tensor, places: Tensor, seed: Tensor | None) -> Tensor:
        """(B, 1 + L, D), CLS and K patches chosen by ``places`` → (B, K, E): the patches as the encoder sees them."""
        seen = self.encoder.run(gather_rows(rows, places), last=places.shape[1] - 1, seed=seed)
        return self.encoder_to_decoder(seen)

    def _decoded(self, latent: Tensor, order: Tensor, seed: Tensor | None) -> Tensor:
        """(B, M, E) → (B, M, E): through the decoder's blocks and its norm, as the head reads them."""
        rows = latent + F.embedding(order[:, self.context :], self.positions)
        keep = drop_path_scale(self.decoder_blocks, self.encoder.drop_path_rate, len(rows), stream(seed, DECODER))
        return self.decoder_norm(run_blocks(self.decoder_blocks, rows, keep=keep))

    def _regressed(self, given: Tensor, order: Tensor, seed: Tensor | None) -> Tensor:
        """(B, context − 1, E) → (B, M, E): mask tokens through the cross-attention blocks, then the norm."""
        positions = F.embedding(order[:, 1:], self.positions)
        rows = self.mask_token.to(given.dtype).expand(len(given), order.shape[1] - self.context, -1)
        keep = drop_path_scale(self.regressor_blocks, self.encoder.drop_path_rate, len(given), stream(seed, REGRESSOR))
        for block, kept in zip(self.regressor_blocks, keep, strict=True):
            rows = block(rows, given, positions, kept)
        return self.regressor_norm(rows)

    def _encoding_work(self, patches: int) -> Work:
        dim, ratio, depth = self.encoder.embed_dim, self.encoder.mlp_ratio, len(self.encoder.blocks)
        project = 0 if isinstance(self.encoder_to_decoder, nn.Identity) else patches * dim * self.head.in_features
        last = block_work(dim, ratio, patches, 1 + patches)
        return block_work(dim, ratio, 1 + patches, 1 + patches) * (depth - 1) + last + Work(linear=project)


class RegressorBlock(nn.Module):
    """Hidden rows read the given rows and one another; the norm before the MLP replaces the residual stream."""

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

    def forward(self, rows: Tensor, given: Tensor, positions: Tensor, keep: Tensor | None = None) -> Tensor:
        """One block.

        Args:
            rows: (B, M, E), the hidden patches so far.
            given: (B, L − M, E), the same for all blocks.
            positions: (B, L, E), of the given and then of the hidden patches: added to queries and keys, not to values.
            keep: (2, B, 1, 1), factors of the two branches, for stochastic depth.

        Returns:
            (B, M, E).
        """
        readable = torch.cat([given, rows], dim=1)
        query = self.norm1_q(rows + positions[:, given.shape[1] :])
        read = self.ls1(self.cross_attn(query, self.norm1_k(readable + positions), self.norm1_v(readable)))
        rows = self.norm2(rows + (read if keep is None else read * keep[0]))
        thought = self.ls2(self.mlp(rows))
        return rows + (thought if keep is None else thought * keep[1])


class CrossAttention(nn.Module):
    """Multi-head attention with queries, keys and values of their own; a bias of the keys would change nothing."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide a width of {dim}")
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, M, E), (B, K, E), (B, K, E) → (B, M, E)."""
        q, k, v = (
            rows.unflatten(-1, (self.heads, -1)).transpose(1, 2) for rows in (self.q(query), self.k(key), self.v(value))
        )
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
