"""BEiT v2's aggregation: a second prediction that only CLS can help, so that CLS learns to sum up the image.

Peng et al., "BEiT v2", arXiv 2208.06366. Rows of an intermediate layer, with CLS as the last layer left it, pass
through two more blocks to the same norm and head: what the later layers found out reaches them through CLS alone.

Nothing leaks, whatever the pattern: CLS has clock 0 at every layer, so its last state, too, knows only what is given.
"""

import torch
from torch import Tensor, nn

from mapet.method.cost import Work, block_work, head_work, work
from mapet.method.cross_entropy import chunked_cross_entropy
from mapet.method.encoder import Block, Encoder, drop_path_scale, init_linear, run_blocks, stream
from mapet.method.pattern import Pattern
from mapet.method.predict import TokenPrediction

AGGREGATION = 1  # a stream of each sample's chance beside the encoder's


class ClassAggregation(TokenPrediction):
    """Token prediction twice: from the encoder, and from an intermediate layer with the encoder's CLS.

    The extra blocks stand beside the encoder's next ones: they are drawn like them and share their rates of stochastic
    depth. (The published code leaves them at torch's default initialisation of linear layers.)

    Args:
        encoder, pattern, vocabulary: as ``TokenPrediction``.
        layer: blocks before the intermediate rows are taken (published: 9 of 12, 21 of 24).
        extra: blocks of the second prediction.

    Raises:
        ValueError: a layer outside 1 … depth − extra, or an encoder and pattern that do not fit.
    """

    def __init__(self, encoder: Encoder, pattern: Pattern, vocabulary: int, *, layer: int, extra: int = 2) -> None:
        super().__init__(encoder, pattern, vocabulary)
        depth = len(encoder.blocks)
        if not (extra >= 1 and 1 <= layer <= depth - extra):
            raise ValueError(f"layer {layer} and {extra} extra blocks must fit into a depth of {depth}")
        self.layer, self.cls_row = layer, pattern.position_in_order.tolist().index(0)
        shape = (encoder.embed_dim, encoder.num_heads, encoder.mlp_ratio, encoder.init_values)
        self.cls_blocks = nn.ModuleList(Block(*shape) for _ in range(extra)).apply(init_linear)

    def both(self, images: Tensor, order: Tensor, seed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The encoder's prediction and the second one, each as ``logits``: (B, M, V)."""
        first, second = self._states(images, order, seed)
        return self.head(first), self.head(second)

    def _states(self, images: Tensor, order: Tensor, seed: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the head reads for each prediction: (B, M, D)."""
        encoder, count, size = self.encoder, len(self.pattern.predict), len(images)
        early, late = self._layers(self.rows(images, order), seed)
        rows = torch.cat([early[:, : self.cls_row], late[:, :1], early[:, self.cls_row + 1 :]], dim=1)
        beside = drop_path_scale(encoder.blocks, encoder.drop_path_rate, size, stream(seed, AGGREGATION))
        keep = beside[self.layer : self.layer + len(self.cls_blocks)]
        second = run_blocks(self.cls_blocks, rows, self.visible, count, keep)
        return encoder.norm(late[:, -count:]), encoder.norm(second)

    def forward(self, images: Tensor, tokens: Tensor, order: Tensor, seed: Tensor | None = None) -> dict[str, Tensor]:
        """As ``TokenPrediction.forward``; ``loss`` is the sum of ``token_loss`` (the encoder's) and ``cls_loss``."""
        target = tokens.gather(1, order[:, self.pattern.context :] - 1)
        (token_loss, accuracy), (cls_loss, _) = (
            chunked_cross_entropy(rows, self.head, target) for rows in self._states(images, order, seed)
        )
        return {"loss": token_loss + cls_loss, "token_loss": token_loss, "cls_loss": cls_loss, "accuracy": accuracy}

    def work(self, training: bool = False) -> Work:
        """The work on one image (``cost.py``): of its forward pass, or of forward and backward together."""
        rows, keys, count = self.pattern.rows, self.pattern.keys, len(self.pattern.predict)
        dim, ratio = self.encoder.embed_dim, self.encoder.mlp_ratio
        plain = work(self.encoder, self.pattern, self.vocabulary) + block_work(dim, ratio, count, keys) * -1
        late = block_work(dim, ratio, rows - self.cls_row, keys)
        extra = block_work(dim, ratio, rows, keys) * (len(self.cls_blocks) - 1) + block_work(dim, ratio, count, keys)
        return (plain + late + extra + head_work(dim, self.vocabulary, count)) * (3 if training else 1)

    def _layers(self, rows: Tensor, seed: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, R, D) → rows after the intermediate layer, and after the last one those from CLS on; no norm."""
        blocks = self.encoder.blocks
        keep = drop_path_scale(blocks, self.encoder.drop_path_rate, len(rows), seed)
        early = run_blocks(blocks[: self.layer], rows, self.visible, keep=keep[: self.layer])
        wanted = self.pattern.rows - self.cls_row
        return early, run_blocks(blocks[self.layer :], early, self.visible, wanted, keep[self.layer :])
