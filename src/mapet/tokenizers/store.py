"""Tokens on disk, found by image key.

A folder of ``tokens.bin`` (little-endian uint16, N × L), ``keys.txt`` (one key a line) and ``store.json`` (header).
A row counts when it is complete in ``tokens.bin`` and its line is complete in ``keys.txt``; whatever lies behind the
last such row, as a kill may leave it, is not read and is cut off by the next ``append``. Whoever appends has the
folder's lock, so that a second writer is refused and not mixed in.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mapet.tokenizers.id_index import IdIndex
from mapet.utils.errors import MapetError
from mapet.utils.io import encode_id, read_json, replace_file, write_from
from mapet.utils.lock import Lock
from mapet.utils.view import CenterCropResize

FORMAT = "mapet tokens 1"
BATCH = 1 << 16  # keys looked up at a time
TOKENS, KEYS, HEADER = "tokens.bin", "keys.txt", "store.json"
WRITING = "writing tokens into"  # what a lock is for


class TokenStore:
    """The tokens of many images: ``create`` or ``open`` one; one process at a time appends, any may read.

    Attributes:
        view: the crop that the tokenizer saw, at its own input size.
        grid: (rows, columns) of patches, L = rows × columns.
        vocabulary: tokens are below it.
        tokenizer: hash of the codebook.
        extra: further header fields of whoever created the store.
    """

    def __init__(self, folder: Path, header: dict[str, Any]):
        self.folder = folder
        try:
            self.view = CenterCropResize.from_dict(header["view"])
            self.grid: tuple[int, int] = (int(header["grid"][0]), int(header["grid"][1]))
            self.vocabulary, self.tokenizer = int(header["vocabulary"]), str(header["tokenizer"])
            self.extra: dict[str, Any] = header["extra"]
            known = header["format"] == FORMAT and min(self.grid) > 0
        except (KeyError, IndexError, TypeError, ValueError):
            known = False
        if not known:
            raise MapetError(f"{folder / HEADER} is damaged or of another version: make the tokens anew.")
        self.length = self.grid[0] * self.grid[1]
        self._index, self._tokens = IdIndex(), self._mapped(0)
        self._end_of_keys = 0
        self._lock: Lock | None = None
        self._sizes = self._found()
        self._recover()

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        view: CenterCropResize,
        grid: tuple[int, int],
        vocabulary: int,
        tokenizer: str,
        extra: dict[str, Any] | None = None,
    ) -> Self:
        """A new store in ``folder``, or the interrupted one with the same header.

        Raises:
            MapetError: the folder's store has another header, or the vocabulary does not fit 16 bits.
        """
        if not 1 <= vocabulary <= 1 << 16:
            raise MapetError(
                f"A vocabulary of {vocabulary} does not fit the store's 16 bits: use 65536 codes or fewer."
            )
        header: dict[str, Any] = {"format": FORMAT, "view": view.to_dict(), "grid": list(grid)}
        header |= {"vocabulary": vocabulary, "tokenizer": tokenizer, "extra": extra or {}}
        header = json.loads(json.dumps(header))
        if (folder / HEADER).exists():
            _require_same(folder, read_json(folder / HEADER, "a token store"), header)
        elif (folder / TOKENS).exists() or (folder / KEYS).exists():
            raise MapetError(f"{folder} holds tokens without {HEADER}: choose another folder or empty it.")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(folder / HEADER, json.dumps(header, indent=2).encode())
        return cls(folder, header)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """An existing store.

        Raises:
            MapetError: the folder is not a token store or is damaged.
        """
        return cls(folder, read_json(folder / HEADER, "a token store"))

    def append(self, keys: Sequence[str], tokens: Tensor) -> None:
        """Add the rows ``tokens`` (B, L) of the images ``keys``; on the disk when this returns.

        Raises:
            MapetError: a key that is there already, a line break in a key, tokens of another shape or vocabulary; or
                another process that writes here, or has written since the store was opened.
        """
        self._require_fitting(keys, tokens)
        self.reserve()
        lines = [encode_id(key) for key in keys]
        start, clash = len(self), self._index.add(lines)
        if clash is not None:
            raise MapetError(f'{self.folder} has the image "{keys[clash]}" already, or another of the same hash.')
        text = b"".join(line + b"\n" for line in lines)
        write_from(self.folder / TOKENS, start * 2 * self.length, tokens.cpu().numpy().astype("<u2").tobytes())
        write_from(self.folder / KEYS, self._end_of_keys, text)
        self._end_of_keys += len(text)
        self._sizes = (len(self) * 2 * self.length, self._end_of_keys)
        self._tokens = self._mapped(len(self))

    def reserve(self, lock: Lock | None = None) -> None:
        """Keep all others from appending, until ``release`` or the end of this process; ``append`` does so by itself.

        Args:
            lock: of the folder, where the caller has it.

        Raises:
            MapetError: another process writes here, or has written since the store was opened.
        """
        self._lock = self._lock or lock or Lock(self.folder, WRITING)
        if self._found() != self._sizes:
            raise MapetError(
                f"Another process has written into {self.folder} since this one began: give the same command again."
            )

    def release(self) -> None:
        """Let others append; who opened the store before that must open it again."""
        if self._lock is not None:
            self._lock.release()
        self._lock = None

    def __contains__(self, key: str) -> bool:
        return bool(self._index.find([key])[0] >= 0)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, key: str) -> NDArray[np.uint16]:
        """The tokens (L,) of one image."""
        row: NDArray[np.uint16] = self.tokens[self.rows([key])[0]]
        return row

    @property
    def tokens(self) -> NDArray[np.uint16]:
        """All rows (N, L), mapped from the disk."""
        return self._tokens

    def keys(self) -> Iterator[str]:
        """All keys, in the order of the rows."""
        with _lines(self.folder / KEYS) as lines:
            for line in islice(lines, len(self)):
                yield line[:-1].decode("utf-8", "surrogateescape")

    def missing(self, keys: Sequence[str]) -> NDArray[np.bool_]:
        """Which of the keys are not in the store: (B,)."""
        return self._index.find(keys) < 0

    def rows(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """The row of each key: (B,).

        Raises:
            MapetError: a key is not in the store.
        """
        rows = self._index.find(keys)
        if len(missing := np.flatnonzero(rows < 0)):
            raise MapetError(
                f"{self.folder} lacks the tokens of {len(missing)} of {len(keys)} images, "
                f'for instance "{keys[missing[0]]}": tokenize this data into it.'
            )
        return rows

    def gather(self, keys: Sequence[str]) -> Tensor:
        """The tokens of many images: (B, L) int64."""
        return torch.from_numpy(self.tokens[self.rows(keys)].astype(np.int64))

    def check(self, *, source_name: str, keys: Iterable[str], view: CenterCropResize, grid: tuple[int, int]) -> None:
        """See that the store fits a source, and the view and grid of a student; the student's size may differ.

        Raises:
            MapetError: another crop, interpolation or grid, or images without tokens.
        """
        if view.interpolation != self.view.interpolation or not _same_aspect(view, self.view):
            raise MapetError(f"{self.folder} was made with {_shown(self.view)}, and the student sees {_shown(view)}.")
        if grid != self.grid:
            raise MapetError(
                f"{self.folder} has a grid of {self.grid}, and the student one of {grid}: make its own tokens."
            )
        keys, total, lacking, example = iter(keys), 0, 0, ""
        while batch := list(islice(keys, BATCH)):
            missing = np.flatnonzero(self.missing(batch))
            example = example or (batch[missing[0]] if len(missing) else "")
            total, lacking = total + len(batch), lacking + len(missing)
        if lacking:
            raise MapetError(
                f"{self.folder} ({len(self)} images) lacks the tokens of {lacking} of the {total} "
                f'images of {source_name}, for instance "{example}": tokenize {source_name} into it.'
            )

    def _require_fitting(self, keys: Sequence[str], tokens: Tensor) -> None:
        if tokens.shape != (len(keys), self.length):
            raise MapetError(f"{self.folder} takes ({len(keys)}, {self.length}) tokens, not {tuple(tokens.shape)}.")
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.vocabulary:
            raise MapetError(f"{self.folder} takes tokens from 0 to {self.vocabulary - 1} only.")
        if bad := [key for key in keys if "\n" in key]:
            raise MapetError(f"The image key {bad[0]!r} has a line break in it: rename the image.")

    def _found(self) -> tuple[int, int]:
        """The bytes of tokens and keys that are on the disk now."""
        paths = (self.folder / TOKENS, self.folder / KEYS)
        tokens, keys = (path.stat().st_size if path.exists() else 0 for path in paths)
        return tokens, keys

    def _recover(self) -> None:
        """Read the keys of all complete rows."""
        complete = self._sizes[0] // (2 * self.length)
        with _lines(self.folder / KEYS) as lines:
            clash = self._index.add(self._counted(islice(lines, complete)))
        if clash is not None:
            raise MapetError(f"{self.folder / KEYS} names an image twice (line {clash + 1}): make the tokens anew.")
        self._tokens = self._mapped(len(self))

    def _counted(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        for line in lines:
            if line.endswith(b"\n"):
                self._end_of_keys += len(line)
                yield line[:-1]

    def _mapped(self, count: int) -> NDArray[np.uint16]:
        if not count:
            return np.empty((0, self.length), "<u2")
        return np.memmap(self.folder / TOKENS, "<u2", mode="r", shape=(count, self.length))


def _lines(path: Path) -> Any:
    return path.open("rb") if path.exists() else open(os.devnull, "rb")


def _same_aspect(one: CenterCropResize, other: CenterCropResize) -> bool:
    return one.size[0] * other.size[1] == one.size[1] * other.size[0]


def _shown(view: CenterCropResize) -> str:
    return f"a {view.interpolation} view of {view.size[0]}x{view.size[1]} pixels"


def _require_same(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Compare two headers, the creators' own fields one by one."""
    theirs, ours = ({**header, **(header.get("extra") or {})} for header in (found, wanted))
    for name in dict.fromkeys([*ours, *theirs]):
        if name != "extra" and theirs.get(name) != ours.get(name):
            raise MapetError(
                f"{folder} holds tokens with {name} {theirs.get(name)}, and {name} {ours.get(name)} is wanted: "
                "choose another folder."
            )
