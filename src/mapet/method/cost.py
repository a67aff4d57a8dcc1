"""What a forward pass costs: multiply-accumulates, the currency in which objectives are compared.

Every objective counts its own with ``macs()``. A backward pass takes twice the forward pass again, except for a part
that is run without gradient. Counted as computed here: keys and values of readable rows only, and nothing but the
predicted rows in the last block.
"""

from mapet.method.encoder import Encoder
from mapet.method.pattern import Pattern


def macs(encoder: Encoder, pattern: Pattern | None = None, vocabulary: int = 0) -> int:
    """Multiply-accumulates of one image's forward pass; a training step takes about three times as many.

    Args:
        encoder: its sizes are read, its weights are not.
        pattern: of the objective; without it, the encoder alone on a plain image.
        vocabulary: V, the width of the head on every predicted row.

    Returns:
        The products of all matrix multiplications: patch embedding, projections, attention, MLP and head. Norms,
        softmax and activations are left out, as is usual.
    """
    positions = 1 + encoder.length
    rows, keys, predicted = (
        (pattern.rows, pattern.keys, len(pattern.predict)) if pattern else (positions, positions, positions)
    )
    dim, depth, ratio = encoder.embed_dim, len(encoder.blocks), encoder.mlp_ratio
    blocks = block_macs(dim, ratio, rows, keys) * (depth - 1) + block_macs(dim, ratio, predicted, keys)
    return embed_macs(encoder) + blocks + predicted * dim * vocabulary


def embed_macs(encoder: Encoder) -> int:
    """The patch embedding of all L patches."""
    return encoder.length * encoder.patch_embed.proj.weight.numel()


def block_macs(dim: int, mlp_ratio: float, wanted: int, keys: int) -> int:
    """One block of width ``dim`` that answers ``wanted`` rows from ``keys`` readable ones."""
    attention = 2 * (wanted + keys) * dim * dim + 2 * wanted * keys * dim  # q, proj and k, v; then scores and values
    return attention + 2 * wanted * dim * int(dim * mlp_ratio)
