"""Token prediction: the whole method on one page.

An encoder, a pattern and a linear head. MaPeT, PeT and MIM are three patterns of it (see ``pattern.py``).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mapet.method.cost import Counted, Work, work
from mapet.method.cross_entropy import chunked_cross_entropy
from mapet.method.encoder import Encoder, init_linear
from mapet.method.order import gather_rows
from mapet.method.pattern import Pattern


class TokenPrediction(Counted, nn.Module):
    """Predict the visual tokens of hidden patches (arXiv 2306.07346, section 3).

    Args:
        encoder: what is kept after pre-training.
        pattern: over the encoder's L patches.
        vocabulary: number of different tokens V.

    Raises:
        ValueError: encoder and pattern count different numbers of patches.
    """

    position_in_order: Tensor
    is_masked: Tensor
    visible: Tensor | None

    def __init__(self, encoder: Encoder, pattern: Pattern, vocabulary: int) -> None:
        super().__init__()
        if encoder.length != pattern.length:
            raise ValueError(f"the encoder has {encoder.length} patches, the pattern {pattern.length}")
        self.encoder, self.pattern = encoder, pattern
        self.mask_token = nn.Parameter(torch.empty(1, 1, encoder.embed_dim))
        self.head = nn.Linear(encoder.embed_dim, vocabulary)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        init_linear(self.head)
        visible = pattern.visible[:, : pattern.keys]
        self.register_buffer("position_in_order", pattern.position_in_order, persistent=False)
        self.register_buffer("is_masked", pattern.is_masked[:, None], persistent=False)
        self.register_buffer("visible", None if pattern.visible.all() else visible, persistent=False)

    @property
    def vocabulary(self) -> int:
        """V, the number of different tokens."""
        return self.head.out_features

    def logits(self, images: Tensor, order: Tensor, seed: Tensor | None = None) -> Tensor:
        """Scores of every token for every hidden patch.

        Args:
            images: (B, C, height, width) float, normalised.
            order: (B, 1 + L) int64 positions, CLS first (``order.py``); the first ``pattern.context`` are given.
            key: (B,) int64, each sample's own seed for stochastic depth; without it torch's generator draws.

        Returns:
            (B, M, V) in the order's own sequence: the k-th is for patch ``order[:, context + k] - 1``.
        """
        return self.head(self.states(images, order, seed))

    def states(self, images: Tensor, order: Tensor, seed: Tensor | None = None) -> Tensor:
        """(B, M, D): the rows that predict, as the head reads them; arguments as ``logits``."""
        return self.encoder.run(self.rows(images, order), self.visible, len(self.pattern.predict), seed)

    def rows(self, images: Tensor, order: Tensor) -> Tensor:
        """(B, R, D): the pattern's rows as they enter the first block, patch or mask token plus position."""
        place = order[:, self.position_in_order]  # (B, R) the position of every row
        patches = gather_rows(self.encoder.embed(images), place)
        rows = torch.where(self.is_masked, self.mask_token.to(patches.dtype), patches)
        return rows + F.embedding(place, self.encoder.pos_embed[0])

    def forward(self, images: Tensor, tokens: Tensor, order: Tensor, seed: Tensor | None = None) -> dict[str, Tensor]:
        """The training step's figures.

        Args:
            images: as in ``logits``.
            tokens: (B, L) int64, one token per patch in natural patch order.
            order, key: as in ``logits``.

        Returns:
            ``loss``: mean cross-entropy over all predicted patches of all images, in nats; ``accuracy``: the share of
            them whose token scores highest. Both scalars.
        """
        target = tokens.gather(1, order[:, self.pattern.context :] - 1)
        loss, accuracy = chunked_cross_entropy(self.states(images, order, seed), self.head, target)
        return {"loss": loss, "accuracy": accuracy}

    def work(self, training: bool = False) -> Work:
        """The work on one image (``cost.py``): of its forward pass, or of forward and backward together."""
        return work(self.encoder, self.pattern, self.vocabulary) * (3 if training else 1)
