"""An objective of your own: masked prediction in random groups, drawn anew at every step.

    mapet pretrain --data images --out runs/groups --objective examples/own_objective.py:RandomGroups

MaPeT reveals the masked patches one at a time, with ``--groups 4`` in four groups of one size. Here the patches are
revealed in two groups whose sizes are drawn at random at each step. No file of the package changes: the run is resumed,
probed, compared and exported like any other.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mapet.method.encoder import Encoder
from mapet.method.order import gather_rows
from mapet.method.pattern import reveal


class RandomGroups(nn.Module):
    """Token prediction in two groups, the first of 1 … M − 1 of the M masked patches.

    Args:
        encoder: what is kept after pre-training.
        vocabulary: number of different tokens V.
        context: positions of an order that are given, CLS included.
    """

    def __init__(self, encoder: Encoder, vocabulary: int, context: int) -> None:
        super().__init__()
        self.encoder, self.context = encoder, context
        self.mask_token = nn.Parameter(torch.randn(1, 1, encoder.embed_dim) * 0.02)
        self.head = nn.Linear(encoder.embed_dim, vocabulary)

    @classmethod
    def from_recipe(cls, recipe, encoder: Encoder, vocabulary: int) -> "RandomGroups":
        """Called by ``mapet``; all settings of the recipe can be read here."""
        return cls(encoder, vocabulary, recipe.context)

    def forward(self, images: Tensor, tokens: Tensor, order: Tensor, seed: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of the masked patches' tokens.

        Args:
            images: (B, 3, H, W) float, normalised.
            tokens: (B, L) int64.
            order: (B, 1 + L) int64 positions, CLS first; the first ``context`` are given.
            seed: (B,) int64, each sample's own seed for stochastic depth.
        """
        masked = order.shape[1] - self.context
        first = int(torch.randint(1, masked, ()))  # torch's generator is seeded before each step
        pattern = reveal(self.encoder.length, [first, masked - first], fill=True)
        position = order[:, pattern.position_in_order.to(order.device)]  # (B, R) of every row
        rows = gather_rows(self.encoder.embed(images), position)
        is_masked = pattern.is_masked[:, None].to(order.device)
        rows = torch.where(is_masked, self.mask_token.to(rows.dtype), rows)
        rows = rows + F.embedding(position, self.encoder.pos_embed[0])
        visible = pattern.visible[:, : pattern.keys].to(order.device)
        logits = self.head(self.encoder.run(rows, visible, masked, seed))  # (B, M, V)
        target = tokens.gather(1, order[:, self.context :] - 1)
        loss = F.cross_entropy(logits.float().flatten(0, 1), target.flatten())
        return {"loss": loss, "accuracy": (logits.argmax(-1) == target).float().mean()}
