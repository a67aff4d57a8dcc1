"""Token prediction: the whole method on one page.

An encoder, a pattern and a linear head. MaPeT, PeT and MIM are three patterns of it (see ``pattern.py``).

Legend: B images, L patches, M masked patches, R rows, D width, V tokens in the vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mapet.method.cost import Counted, Work, work
from mapet.method.cross_entropy import chunked_cross_entropy
from mapet.method.encoder import Encoder, init_linear
from mapet.method.order import gather_rows
from mapet.method.pattern import Pattern
from mapet.method.windows import Visible
from mapet.utils.linear import Linear


class TokenPrediction(Counted, nn.Module):
    """Predict the visual tokens of masked patches (arXiv 2306.07346, section 3).

    Args:
        encoder: the network to pre-train.
        pattern: rows and attention mask over the encoder's L patches.
        vocabulary: number of different tokens V.

    Raises:
        ValueError: encoder and pattern have different numbers of patches.
    """

    position_in_order: Tensor
    is_masked: Tensor

    def __init__(self, encoder: Encoder, pattern: Pattern, vocabulary: int) -> None:
        super().__init__()
        if encoder.length != pattern.length:
            raise ValueError(f"the encoder has {encoder.length} patches, the pattern {pattern.length}")
        self.encoder, self.pattern = encoder, pattern
        self.mask_token = nn.Parameter(torch.empty(1, 1, encoder.embed_dim))
        self.head = Linear(encoder.embed_dim, vocabulary)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        init_linear(self.head)
        self.register_buffer("position_in_order", pattern.position_in_order, persistent=False)
        self.register_buffer("is_masked", pattern.is_masked[:, None], persistent=False)
        # Without a mask, attention can use its fastest kernels.
        self.visible = None if pattern.visible.all() else Visible(pattern.visible[:, : pattern.keys])

    @property
    def vocabulary(self) -> int:
        """V, the number of different tokens."""
        return self.head.out_features

    def forward(self, images: Tensor, tokens: Tensor, order: Tensor, seed: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the loss of one training step.

        Args:
            images: (B, C, H, W) float, normalised.
            tokens: (B, L) int64, one token per patch in row-major order.
            order: (B, 1 + L) int64 positions, CLS first (see ``order.py``); the first ``pattern.context`` are given.
            seed: (B,) int64, one seed per sample for stochastic depth; None draws from torch's generator.

        Returns:
            ``loss``: mean cross-entropy over all masked patches, in nats; ``accuracy``: share of them whose token has
            the largest logit. Both are float32 scalars.
        """
        target = tokens.gather(1, order[:, self.pattern.context :] - 1)
        loss, accuracy = chunked_cross_entropy(self.states(images, order, seed), self.head, target)
        return {"loss": loss, "accuracy": accuracy}

    def logits(self, images: Tensor, order: Tensor, seed: Tensor | None = None) -> Tensor:
        """Return (B, M, V) logits by index in the order: the k-th belongs to patch ``order[:, context + k] - 1``."""
        return self.head(self.states(images, order, seed))

    def states(self, images: Tensor, order: Tensor, seed: Tensor | None = None) -> Tensor:
        """Return (B, M, D), the outputs of the predicting rows after the final norm."""
        return self.encoder.run(self.rows(images, order), self.visible, len(self.pattern.predict), seed)

    def rows(self, images: Tensor, order: Tensor) -> Tensor:
        """Return (B, R, D), the inputs of the first block: patch or mask token, plus position embedding."""
        position_BR = order[:, self.position_in_order]
        patches = gather_rows(self.encoder.embed(images), position_BR)
        rows = torch.where(self.is_masked, self.mask_token.to(patches.dtype), patches)
        return rows + F.embedding(position_BR, self.encoder.pos_embed[0])

    def work(self, training: bool = False) -> Work:
        """Return the cost per image (see ``cost.py``): forward pass, or forward and backward with ``training``."""
        return work(self.encoder, self.pattern, self.vocabulary) * (3 if training else 1)
