"""Sequences of many strings without one Python object per string."""

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import overload

import numpy as np

PATHS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()  # as os.fsencode
BLOCK = 1 << 14  # strings that are encoded at a time


class PackedStrings(Sequence[str]):
    """Many strings in one block of memory, which forked workers share without copies."""

    def __init__(self, strings: Iterable[str]) -> None:
        rest, blocks, lengths = iter(strings), [], array("q", [0])
        while parts := [string.encode(*PATHS) for string in islice(rest, BLOCK)]:
            blocks.append(b"".join(parts))
            lengths.extend(map(len, parts))
        self._bytes, self._ends = b"".join(blocks), np.cumsum(lengths)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[str]: ...
    def __getitem__(self, i: int | slice) -> str | Sequence[str]:
        if isinstance(i, slice):
            return [self[index] for index in range(*i.indices(len(self)))]
        index = i if i >= 0 else i + len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"index {i} of {len(self)} strings")
        return self._between(self._ends.item(index), self._ends.item(index + 1)).decode(*PATHS)

    def __iter__(self) -> Iterator[str]:
        return (self._between(start, end).decode(*PATHS) for start, end in pairwise(self._ends.tolist()))

    def _between(self, start: int, end: int) -> bytes:
        return self._bytes[start:end]


class PackedLines(PackedStrings):
    """The lines of a memory-mapped file, without line breaks; the file must not be empty."""

    def __init__(self, path: Path) -> None:
        self._mapped = np.memmap(path, np.uint8, "r")
        self._ends = np.concatenate([[0], np.flatnonzero(self._mapped == ord("\n")) + 1])

    def _between(self, start: int, end: int) -> bytes:
        return self._mapped[start : end - 1].tobytes()
