"""Image keys to row numbers in 16 bytes an image."""

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from mapet.utils.io import encode_id


class IdIndex:
    """Sorted 64-bit BLAKE2b hashes of keys, each with its row; two keys of one hash cannot both be in it."""

    def __init__(self) -> None:
        self.hashes: NDArray[np.uint64] = np.empty(0, np.uint64)
        self.rows: NDArray[np.int64] = np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def find(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """The row of each key, -1 where there is none: (B,)."""
        wanted = hashes([encode_id(key) for key in keys])
        places = np.searchsorted(self.hashes, wanted)
        found = np.full(len(wanted), -1)
        near = np.flatnonzero(places < len(self.hashes))
        hits = near[self.hashes[places[near]] == wanted[near]]
        found[hits] = self.rows[places[hits]]
        return found

    def add(self, lines: Iterable[bytes]) -> int | None:
        """Give the next rows to encoded keys; where one is there already or comes twice: nothing, and its position."""
        fresh = hashes(lines)
        order = fresh.argsort(kind="stable")
        places = np.searchsorted(self.hashes, fresh[order])
        clash = np.zeros(len(fresh), bool)
        clash[1:] = fresh[order][1:] == fresh[order][:-1]
        inside = places < len(self.hashes)
        clash[inside] |= self.hashes[places[inside]] == fresh[order][inside]
        if clash.any():
            return int(order[clash].min())
        rows = len(self.rows) + order
        self.hashes = np.insert(self.hashes, places, fresh[order])
        self.rows = np.insert(self.rows, places, rows)
        return None


def hashes(lines: Iterable[bytes]) -> NDArray[np.uint64]:
    """64-bit BLAKE2b hashes of encoded keys: (B,)."""
    values = (int.from_bytes(blake2b(line, digest_size=8).digest(), "little") for line in lines)
    return np.fromiter(values, np.uint64)
