"""Maps image ids to row numbers with 16 bytes per image."""

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from mapet.utils.io import encode_id


class IdIndex:
    """Sorted 64-bit BLAKE2b hashes of image ids with their rows; ids with equal hashes are refused."""

    def __init__(self) -> None:
        self.hashes: NDArray[np.uint64] = np.empty(0, np.uint64)
        self.rows: NDArray[np.int64] = np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def find(self, image_ids: Sequence[str]) -> NDArray[np.int64]:
        """The row of each id, or -1: (B,)."""
        wanted = hashes([encode_id(image_id) for image_id in image_ids])
        positions = np.searchsorted(self.hashes, wanted)
        found = np.full(len(wanted), -1)
        near = np.flatnonzero(positions < len(self.hashes))
        hits = near[self.hashes[positions[near]] == wanted[near]]
        found[hits] = self.rows[positions[hits]]
        return found

    def add(self, lines: Iterable[bytes]) -> int | None:
        """Assign the next rows to encoded ids. If one is known or repeated, add none and return its position."""
        return self.add_hashes(hashes(lines))

    def add_hashes(self, fresh: NDArray[np.uint64]) -> int | None:
        """As ``add``, for the ids' hashes."""
        order = fresh.argsort(kind="stable")
        positions = np.searchsorted(self.hashes, fresh[order])
        clash = np.zeros(len(fresh), bool)
        clash[1:] = fresh[order][1:] == fresh[order][:-1]
        inside = positions < len(self.hashes)
        clash[inside] |= self.hashes[positions[inside]] == fresh[order][inside]
        if clash.any():
            return int(order[clash].min())
        rows = len(self.rows) + order
        self.hashes = np.insert(self.hashes, positions, fresh[order])
        self.rows = np.insert(self.rows, positions, rows)
        return None


def hashes(lines: Iterable[bytes]) -> NDArray[np.uint64]:
    """64-bit BLAKE2b hashes of encoded ids: (B,)."""
    values = (int.from_bytes(blake2b(line, digest_size=8).digest(), "little") for line in lines)
    return np.fromiter(values, np.uint64)
