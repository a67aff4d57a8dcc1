"""What a forward pass costs: multiply-accumulates, the currency in which objectives are compared.

Every objective counts its own with ``work()``. A backward pass takes twice the forward pass again, except for a part
that is run without gradient. Counted as computed here: keys and values of readable rows only, and nothing but the
predicted rows in the last block.
"""

from dataclasses import dataclass, fields

from mapet.method.encoder import Encoder
from mapet.method.pattern import Pattern


@dataclass(frozen=True)
class Work:
    """The work on one image, by what a machine does at different speeds; sums and multiples of it are work too.

    Attributes:
        linear: multiply-accumulates of products with weights: patch embedding, projections, MLP and head.
        attention: multiply-accumulates of products of rows with rows: scores and values.
        states: values of the row state that pass through a block: norms, activations and residual sums.
        scores: values that are compared with a target: tokens' logits, or pixels.
    """

    linear: int = 0
    attention: int = 0
    states: int = 0
    scores: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    def __mul__(self, times: int) -> "Work":
        return Work(*(getattr(self, one.name) * times for one in fields(self)))

    @property
    def macs(self) -> int:
        """The products of all matrix multiplications; norms, softmax and activations are left out, as is usual."""
        return self.linear + self.attention


class Counted:
    """An objective that counts what it does."""

    def work(self, training: bool = False) -> Work:
        """Of one image's forward pass, or of forward and backward together."""
        raise NotImplementedError

    def macs(self, training: bool = False) -> int:
        """Multiply-accumulates of one image's forward pass, or of forward and backward together."""
        return self.work(training).macs


def macs(encoder: Encoder, pattern: Pattern | None = None, vocabulary: int = 0) -> int:
    """Multiply-accumulates of one image's forward pass; arguments as ``work``."""
    return work(encoder, pattern, vocabulary).macs


def work(encoder: Encoder, pattern: Pattern | None = None, vocabulary: int = 0) -> Work:
    """The work of one image's forward pass; a training step takes about three times as much.

    Args:
        encoder: its sizes are read, its weights are not.
        pattern: of the objective; without it, the encoder alone on a plain image.
        vocabulary: V, the width of the head on every predicted row.
    """
    positions = 1 + encoder.length
    rows, keys, predicted = (
        (pattern.rows, pattern.keys, len(pattern.predict)) if pattern else (positions, positions, positions)
    )
    dim, depth, ratio = encoder.embed_dim, len(encoder.blocks), encoder.mlp_ratio
    blocks = block_work(dim, ratio, rows, keys) * (depth - 1) + block_work(dim, ratio, predicted, keys)
    return embed_work(encoder) + blocks + head_work(dim, vocabulary, predicted)


def embed_work(encoder: Encoder) -> Work:
    """The patch embedding of all L patches."""
    return Work(linear=encoder.length * encoder.patch_embed.proj.weight.numel())


def head_work(dim: int, width: int, predicted: int) -> Work:
    """A linear head of ``width`` on every predicted row."""
    return Work(linear=predicted * dim * width, scores=predicted * width)


def block_work(dim: int, mlp_ratio: float, wanted: int, keys: int) -> Work:
    """One block of width ``dim`` that answers ``wanted`` rows from ``keys`` readable ones."""
    projections = 2 * (wanted + keys) * dim * dim  # q, proj and k, v
    mlp = 2 * wanted * dim * int(dim * mlp_ratio)
    return Work(linear=projections + mlp, attention=2 * wanted * keys * dim, states=wanted * dim)
