"""The dense two-stream reference: the computation of the published implementation.

A content stream of all positions and all placeholders, a query stream of the masked patches, separate ``q`` and ``kv``,
additive float32 masks for every image and head that come with the batch, an explicit softmax, and a last block that
updates both streams.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mapet.method.encoder import Attention, Block
from mapet.method.predict import TokenPrediction
from mapet.utils.linear import Linear


class DenseAttention(nn.Module):
    """Attention of two streams to the content stream, every score computed and kept."""

    def __init__(self, ours: Attention) -> None:
        super().__init__()
        dim = ours.proj.in_features
        self.heads, self.scale = ours.heads, (dim // ours.heads) ** -0.5
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), copy.deepcopy(ours.proj)
        self.q.load_state_dict({name: tensor[:dim] for name, tensor in ours.qkv.state_dict().items()})
        self.kv.load_state_dict({name: tensor[dim:] for name, tensor in ours.qkv.state_dict().items()})

    def forward(
        self, content: Tensor, query: Tensor, content_mask: Tensor, query_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Content (B, N + M, D) and query rows (B, M, D), masks (B, H, rows, N + M) → what each row read."""
        k, v = map(self._split, self.kv(content).chunk(2, dim=-1))
        return self._read(content, k, v, content_mask), self._read(query, k, v, query_mask)

    def _read(self, rows: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        scores = self._split(self.q(rows)) @ k.transpose(-2, -1) * self.scale + mask
        read = scores.softmax(dim=-1).to(v.dtype) @ v
        return self.proj(read.transpose(1, 2).flatten(2))

    def _split(self, rows: Tensor) -> Tensor:
        return rows.view(*rows.shape[:2], self.heads, -1).transpose(1, 2)


class DenseBlock(nn.Module):
    """A block over both streams; they share every weight."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        assert isinstance(ours, Block)
        self.norm1, self.norm2, self.ls1, self.ls2, self.mlp = (
            copy.deepcopy(module) for module in (ours.norm1, ours.norm2, ours.ls1, ours.ls2, ours.mlp)
        )
        self.attn = DenseAttention(ours.attn)

    def forward(self, streams: tuple[Tensor, Tensor], masks: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Both streams in, both streams out."""
        reads = self.attn(*(self.norm1(stream) for stream in streams), *masks)
        streams = tuple(stream + self.ls1(read) for stream, read in zip(streams, reads, strict=True))
        return tuple(stream + self.ls2(self.mlp(self.norm2(stream))) for stream in streams)


class Dense(nn.Module):
    """The two-stream reference, with a copy of the weights of ``ours``."""

    def __init__(self, ours: TokenPrediction) -> None:
        super().__init__()
        self.encoder, self.mask_token = copy.deepcopy(ours.encoder), copy.deepcopy(ours.mask_token)
        self.head = copy.deepcopy(ours.head)
        self.encoder.blocks = nn.ModuleList(DenseBlock(block) for block in ours.encoder.blocks)
        for module in self.modules():
            if isinstance(module, Linear):
                module.__class__ = nn.Linear  # torch's own product

    def logits(self, images: Tensor, predicted: Tensor, masks: tuple[Tensor, Tensor]) -> Tensor:
        """(B, M, V) for the positions ``predicted`` (B, M), ascending, as in the published implementation."""
        positions = self.encoder.pos_embed
        placeholders = self.mask_token + F.embedding(predicted, positions[0])
        streams = (torch.cat([self.encoder.embed(images) + positions, placeholders], dim=1), placeholders)
        for block in self.encoder.blocks:
            streams = block(streams, masks)
        _, query = (self.encoder.norm(stream) for stream in streams)
        return self.head(query)

    def forward(
        self, images: Tensor, tokens: Tensor, predicted: Tensor, content_mask: Tensor, query_mask: Tensor
    ) -> dict[str, Tensor]:
        """``loss``: mean cross-entropy over vocabulary-first scores, picked by a boolean that here keeps all."""
        logits = self.logits(images, predicted, (content_mask, query_mask))
        picked = logits.permute(2, 0, 1)[:, torch.ones_like(predicted, dtype=torch.bool)]
        scores = picked.view(-1, *predicted.shape).transpose(0, 1)
        return {"loss": F.cross_entropy(scores.float(), tokens.gather(1, predicted - 1))}


def predicted_positions(order: Tensor, context: int) -> Tensor:
    """(B, M) the masked positions of each image, ascending."""
    return order[:, context:].sort(dim=1).values


def dense_masks(order: Tensor, context: int, heads: int) -> tuple[Tensor, Tensor]:
    """Additive float32 masks (B, H, N + M, N + M) and (B, H, M, N + M), in memory for every image and head.

    A row that knows the order up to position e reads the patches up to there, and the placeholders of later ones.
    """
    position = order.argsort(dim=1)
    masked = position.gather(1, predicted_positions(order, context))

    def additive(known: Tensor) -> Tensor:
        known = known.clamp(min=context - 1)[:, :, None]
        seen = torch.cat([position[:, None] <= known, masked[:, None] > known], dim=2)
        mask = torch.zeros(seen.shape, device=order.device).masked_fill(~seen, -torch.inf)
        return mask[:, None].repeat(1, heads, 1, 1)

    return additive(torch.cat([position, torch.zeros_like(masked)], dim=1)), additive(masked - 1)


def dense_batch(batch: Mapping[str, Tensor], context: int, heads: int) -> dict[str, Tensor]:
    """A batch as the dense reference takes it, with masks for every image and head."""
    content, query = dense_masks(batch["order"], context, heads)
    return {
        "images": batch["images"],
        "tokens": batch["tokens"],
        "predicted": predicted_positions(batch["order"], context),
        "content_mask": content,
        "query_mask": query,
    }
