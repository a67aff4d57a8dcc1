"""Hashes of the rows of a token store, which find any changed token or image id.

``sums.bin`` has 16 bytes per row, two little-endian uint64: the hash of the image id and that of the tokens.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mapet.tokenizers.id_index import hashes

FILE, ROW = "sums.bin", 16  # bytes


def token_hashes(tokens: NDArray[np.uint16]) -> NDArray[np.uint64]:
    """64-bit BLAKE2b hashes of rows of tokens (B, L): (B,)."""
    return hashes(row.tobytes() for row in np.asarray(tokens, "<u2"))


def encoded(ids: NDArray[np.uint64], tokens: NDArray[np.uint16]) -> bytes:
    """The hashes of rows, by the hashes of their image ids (B,) and their tokens (B, L), as in the file."""
    return np.stack([ids, token_hashes(tokens)], 1).astype("<u8").tobytes()


def mapped(path: Path, count: int) -> NDArray[np.uint64]:
    """The hashes of the first ``count`` rows, memory-mapped: (N, 2)."""
    return np.memmap(path, "<u8", mode="r", shape=(count, 2)) if count else np.empty((0, 2), "<u8")


def first_wrong(tokens: NDArray[np.uint16], sums: NDArray[np.uint64]) -> int | None:
    """The first of the rows (B, L) that does not have its hash; None if all have."""
    wrong = np.flatnonzero(token_hashes(tokens) != np.asarray(sums)[:, 1])
    return int(wrong[0]) if len(wrong) else None
