"""Cost of a forward pass in multiply-accumulates (MACs), by which objectives are compared.

Every objective counts its own cost with ``work()``. A backward pass costs twice its forward pass; parts that run
without gradient have none. The count follows the implementation: keys and values of rows that are read, and only the
predicting rows in the last block.
"""

from dataclasses import dataclass, fields

from mapet.method.encoder import Encoder
from mapet.method.pattern import Pattern


@dataclass(frozen=True)
class Work:
    """Cost per image, by kinds of work that hardware runs at different speeds; supports ``+`` and ``*`` by an integer.

    Attributes:
        linear: MACs of products with weights: patch embedding, projections, MLP, head.
        attention: MACs of products of rows with rows: attention scores and values.
        states: elements of the row states that pass through blocks (norms, activations, residual sums).
        scores: elements compared with a target: logits, or pixels.
    """

    linear: int = 0
    attention: int = 0
    states: int = 0
    scores: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def __mul__(self, times: int) -> "Work":
        return Work(*(getattr(self, field.name) * times for field in fields(self)))

    @property
    def macs(self) -> int:
        """MACs of all matrix products; norms, softmax and activations are not counted, as is usual."""
        return self.linear + self.attention


class Counted:
    """Mixin of objectives that count their cost."""

    def work(self, training: bool = False) -> Work:
        """Return the cost per image: forward pass, or forward and backward with ``training``."""
        raise NotImplementedError

    def macs(self, training: bool = False) -> int:
        """Return the MACs per image; arguments as in ``work``."""
        return self.work(training).macs


def macs(encoder: Encoder, pattern: Pattern | None = None, vocabulary: int = 0) -> int:
    """Return the MACs of one image's forward pass; arguments as in ``work``."""
    return work(encoder, pattern, vocabulary).macs


def work(encoder: Encoder, pattern: Pattern | None = None, vocabulary: int = 0) -> Work:
    """Return the cost of one image's forward pass; forward and backward together cost three times as much.

    Args:
        encoder: only its sizes matter.
        pattern: the objective's pattern; None: the encoder on a plain image.
        vocabulary: V, the width of the head on every predicting row.
    """
    positions = 1 + encoder.length
    rows, keys, predicted = (
        (pattern.rows, pattern.keys, len(pattern.predict)) if pattern else (positions, positions, positions)
    )
    dim, depth, ratio = encoder.embed_dim, len(encoder.blocks), encoder.mlp_ratio
    blocks = block_work(dim, ratio, rows, keys) * (depth - 1) + block_work(dim, ratio, predicted, keys)
    return embed_work(encoder) + blocks + head_work(dim, vocabulary, predicted)


def embed_work(encoder: Encoder) -> Work:
    """Return the cost of the patch embedding."""
    return Work(linear=encoder.length * encoder.patch_embed.proj.weight.numel())


def head_work(dim: int, width: int, rows: int) -> Work:
    """Return the cost of a linear head, ``dim`` → ``width``, on ``rows`` rows."""
    return Work(linear=rows * dim * width, scores=rows * width)


def block_work(dim: int, mlp_ratio: float, queries: int, keys: int) -> Work:
    """Return the cost of one block of width ``dim`` in which ``queries`` rows attend to ``keys`` rows."""
    projections = 2 * (queries + keys) * dim * dim  # q, proj and k, v
    mlp = 2 * queries * dim * int(dim * mlp_ratio)
    return Work(linear=projections + mlp, attention=2 * queries * keys * dim, states=queries * dim)
