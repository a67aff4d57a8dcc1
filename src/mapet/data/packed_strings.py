"""Sequences of many strings without one Python object per string."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import numpy as np


class PackedStrings(Sequence[str]):
    """Many strings in one block of memory, which forked workers share without copies."""

    def __init__(self, strings: Iterable[str]) -> None:
        parts = [os.fsencode(string) for string in strings]
        self._bytes, self._ends = b"".join(parts), np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[str]: ...
    def __getitem__(self, i: int | slice) -> str | Sequence[str]:
        if isinstance(i, slice):
            return [self[index] for index in range(*i.indices(len(self)))]
        index = range(len(self))[i]
        return os.fsdecode(self._between(self._ends[index], self._ends[index + 1]))

    def _between(self, start: int, end: int) -> bytes:
        return self._bytes[start:end]


class PackedLines(PackedStrings):
    """The lines of a memory-mapped file, without line breaks; the file must not be empty."""

    def __init__(self, path: Path) -> None:
        self._mapped = np.memmap(path, np.uint8, "r")
        self._ends = np.concatenate([[0], np.flatnonzero(self._mapped == ord("\n")) + 1])

    def _between(self, start: int, end: int) -> bytes:
        return self._mapped[start : end - 1].tobytes()
