"""BEiT v2's patch aggregation: a second prediction that reaches late layers only through CLS.

Peng et al., "BEiT v2", arXiv 2208.06366. Rows of an intermediate layer, with CLS taken from the last layer, pass
through two more blocks to the same norm and head. CLS thereby learns to summarise the image.

Nothing leaks, whatever the pattern: CLS has clock 0 in every layer, so even its last state depends on the context only.

Legend: B images, M masked patches, R rows, D width, V tokens in the vocabulary.
"""

import torch
from torch import Tensor, nn

from mapet.method.cost import Work, block_work, head_work, work
from mapet.method.cross_entropy import chunked_cross_entropy
from mapet.method.encoder import Block, Encoder, drop_path_scale, fork_seed, init_linear, run_blocks
from mapet.method.pattern import Pattern
from mapet.method.predict import TokenPrediction

AGGREGATION = 1  # random stream of each sample, independent of the encoder's


class ClassAggregation(TokenPrediction):
    """Token prediction twice: from the encoder, and from an intermediate layer with the encoder's last CLS.

    The extra blocks are initialised as the encoder's, and use the stochastic depth rates of the encoder blocks after
    ``layer``. (The published code leaves them at torch's default initialisation of linear layers.)

    Args:
        encoder, pattern, vocabulary: as in ``TokenPrediction``.
        layer: number of blocks before the intermediate rows are taken (published: 9 of 12, 21 of 24).
        extra: number of extra blocks.

    Raises:
        ValueError: ``layer`` is not in 1 … depth − extra, or ``encoder`` and ``pattern`` do not match.
    """

    def __init__(self, encoder: Encoder, pattern: Pattern, vocabulary: int, *, layer: int, extra: int = 2) -> None:
        super().__init__(encoder, pattern, vocabulary)
        depth = len(encoder.blocks)
        if not (extra >= 1 and 1 <= layer <= depth - extra):
            raise ValueError(f"layer {layer} and {extra} extra blocks must fit into a depth of {depth}")
        self.layer, self.cls_row = layer, pattern.position_in_order.tolist().index(0)
        shape = (encoder.embed_dim, encoder.num_heads, encoder.mlp_ratio, encoder.init_values)
        self.cls_blocks = nn.ModuleList(Block(*shape) for _ in range(extra)).apply(init_linear)

    def forward(self, images: Tensor, tokens: Tensor, order: Tensor, seed: Tensor | None = None) -> dict[str, Tensor]:
        """As ``TokenPrediction.forward``; ``loss`` is the sum of ``token_loss`` (encoder) and ``cls_loss`` (second)."""
        target = tokens.gather(1, order[:, self.pattern.context :] - 1)
        (token_loss, accuracy), (cls_loss, _) = (
            chunked_cross_entropy(states, self.head, target) for states in self.both_states(images, order, seed)
        )
        return {"loss": token_loss + cls_loss, "token_loss": token_loss, "cls_loss": cls_loss, "accuracy": accuracy}

    def both_states(self, images: Tensor, order: Tensor, seed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the inputs of the head for the encoder's and the second prediction, (B, M, D) each."""
        encoder, count = self.encoder, len(self.pattern.predict)
        early, late = self._layers(self.rows(images, order), seed)
        rows = torch.cat([early[:, : self.cls_row], late[:, :1], early[:, self.cls_row + 1 :]], dim=1)
        seed = fork_seed(seed, AGGREGATION)
        scales = drop_path_scale(encoder.blocks, encoder.drop_path_rate, len(images), seed)
        scales = scales[self.layer : self.layer + len(self.cls_blocks)]
        second = run_blocks(self.cls_blocks, rows, self.visible, count, scales)
        return encoder.norm(late[:, -count:]), encoder.norm(second)

    def _layers(self, rows: Tensor, seed: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, R, D) → all rows after ``layer`` blocks, and the rows from CLS on after the last block; without norm."""
        blocks = self.encoder.blocks
        scales = drop_path_scale(blocks, self.encoder.drop_path_rate, len(rows), seed)
        early = run_blocks(blocks[: self.layer], rows, self.visible, scales=scales[: self.layer])
        last = self.pattern.rows - self.cls_row
        return early, run_blocks(blocks[self.layer :], early, self.visible, last, scales[self.layer :])

    def work(self, training: bool = False) -> Work:
        """Return the cost per image (see ``cost.py``): forward pass, or forward and backward with ``training``."""
        rows, keys, count = self.pattern.rows, self.pattern.keys, len(self.pattern.predict)
        dim, ratio = self.encoder.embed_dim, self.encoder.mlp_ratio
        plain = work(self.encoder, self.pattern, self.vocabulary) + block_work(dim, ratio, count, keys) * -1
        late = block_work(dim, ratio, rows - self.cls_row, keys)
        extra = block_work(dim, ratio, rows, keys) * (len(self.cls_blocks) - 1) + block_work(dim, ratio, count, keys)
        return (plain + late + extra + head_work(dim, self.vocabulary, count)) * (3 if training else 1)
