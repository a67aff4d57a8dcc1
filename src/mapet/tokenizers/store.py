"""Tokens on disk, found by image id.

A folder of ``tokens.bin`` (little-endian uint16, N × L), ``keys.txt`` (one image id per line) and ``store.json``
(header). A row counts if it is complete in ``tokens.bin`` and its line in ``keys.txt``; what a kill leaves behind the
last such row is ignored, and truncated by the next ``append``. A writer holds the folder's lock, so a second writer is
refused.
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
BATCH = 1 << 16  # image ids looked up at a time
TOKENS, KEYS, HEADER = "tokens.bin", "keys.txt", "store.json"
WRITING = "writing tokens into"  # activity of the lock


class TokenStore:
    """The tokens of many images: ``create`` or ``open`` one. One process at a time appends, any number may read.

    Attributes:
        view: the tokenizer's view, at its input size.
        grid: (rows, columns) of patches, L = rows × columns.
        vocabulary: tokens are below it.
        tokenizer: hash of the tokenizer.
        extra: further header fields.
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
            raise MapetError(f"{folder / HEADER} is damaged or of another version: tokenize again.")
        self.length = self.grid[0] * self.grid[1]
        self._index, self._tokens = IdIndex(), self._mapped(0)
        self._end_of_ids = 0
        self._lock: Lock | None = None
        self._sizes = self._sizes_on_disk()
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
        """A new store in ``folder``, or an interrupted one with the same header.

        Raises:
            MapetError: the folder's store has another header, or the vocabulary does not fit 16 bits.
        """
        if not 1 <= vocabulary <= 1 << 16:
            raise MapetError(f"The vocabulary of a token store must be in 1 … 65536 (16 bits), got {vocabulary}.")
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

    def append(self, image_ids: Sequence[str], tokens: Tensor) -> None:
        """Append the rows ``tokens`` (B, L) of images; on the disk when this returns.

        Raises:
            MapetError: an image id that is in the store or has a line break; tokens of another shape or vocabulary; or
                another process writes here, or has written since the store was opened.
        """
        self._require_fitting(image_ids, tokens)
        self.reserve()
        lines = [encode_id(image_id) for image_id in image_ids]
        start, clash = len(self), self._index.add(lines)
        if clash is not None:
            raise MapetError(f'{self.folder} has the image "{image_ids[clash]}" already, or one with the same hash.')
        text = b"".join(line + b"\n" for line in lines)
        write_from(self.folder / TOKENS, start * 2 * self.length, tokens.cpu().numpy().astype("<u2").tobytes())
        write_from(self.folder / KEYS, self._end_of_ids, text)
        self._end_of_ids += len(text)
        self._sizes = (len(self) * 2 * self.length, self._end_of_ids)
        self._tokens = self._mapped(len(self))

    def reserve(self, lock: Lock | None = None) -> None:
        """Lock the store for writing, until ``release`` or the end of this process; ``append`` does it itself.

        Args:
            lock: the folder's lock, if the caller holds it.

        Raises:
            MapetError: another process writes here, or has written since the store was opened.
        """
        self._lock = self._lock or lock or Lock(self.folder, WRITING)
        if self._sizes_on_disk() != self._sizes:
            raise MapetError(
                f"Another process has written into {self.folder} in the meantime: run the same command again."
            )

    def release(self) -> None:
        """Release the lock. A store that was opened before must be opened again to append."""
        if self._lock is not None:
            self._lock.release()
        self._lock = None

    def __contains__(self, image_id: str) -> bool:
        return bool(self._index.find([image_id])[0] >= 0)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, image_id: str) -> NDArray[np.uint16]:
        """The tokens (L,) of one image."""
        row: NDArray[np.uint16] = self.tokens[self.rows([image_id])[0]]
        return row

    @property
    def tokens(self) -> NDArray[np.uint16]:
        """All rows (N, L), memory-mapped."""
        return self._tokens

    def image_ids(self) -> Iterator[str]:
        """All image ids, in the order of the rows."""
        with _lines(self.folder / KEYS) as lines:
            for line in islice(lines, len(self)):
                yield line[:-1].decode("utf-8", "surrogateescape")

    def missing(self, image_ids: Sequence[str]) -> NDArray[np.bool_]:
        """Which of the images are not in the store: (B,)."""
        return self._index.find(image_ids) < 0

    def rows(self, image_ids: Sequence[str]) -> NDArray[np.int64]:
        """The row of each image: (B,).

        Raises:
            MapetError: an image is not in the store.
        """
        rows = self._index.find(image_ids)
        if len(missing := np.flatnonzero(rows < 0)):
            raise MapetError(
                f"{self.folder} lacks the tokens of {len(missing)} of {len(image_ids)} images, "
                f'for instance "{image_ids[missing[0]]}": tokenize this data into it.'
            )
        return rows

    def gather(self, image_ids: Sequence[str]) -> Tensor:
        """The tokens of many images: (B, L) int64."""
        return torch.from_numpy(self.tokens[self.rows(image_ids)].astype(np.int64))

    def check(
        self, *, source_name: str, image_ids: Iterable[str], view: CenterCropResize, grid: tuple[int, int]
    ) -> None:
        """Require that the store fits a dataset, and the view and grid of a student; the student's size may differ.

        Raises:
            MapetError: another crop, interpolation or grid, or images without tokens.
        """
        if view.interpolation != self.view.interpolation or not _same_aspect(view, self.view):
            raise MapetError(
                f"{self.folder} was made with {_view_text(self.view)}, but the student uses {_view_text(view)}: "
                "tokenize with the student's view."
            )
        if grid != self.grid:
            raise MapetError(f"{self.folder} has the grid {self.grid}, the student {grid}: tokenize with its grid.")
        remaining, total, lacking, example = iter(image_ids), 0, 0, ""
        while batch := list(islice(remaining, BATCH)):
            missing = np.flatnonzero(self.missing(batch))
            example = example or (batch[missing[0]] if len(missing) else "")
            total, lacking = total + len(batch), lacking + len(missing)
        if lacking:
            raise MapetError(
                f"{self.folder} ({len(self)} images) lacks the tokens of {lacking} of the {total} "
                f'images of {source_name}, for instance "{example}": tokenize {source_name} into it.'
            )

    def _require_fitting(self, image_ids: Sequence[str], tokens: Tensor) -> None:
        if tokens.shape != (len(image_ids), self.length):
            raise MapetError(
                f"{self.folder} takes ({len(image_ids)}, {self.length}) tokens, not {tuple(tokens.shape)}."
            )
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.vocabulary:
            raise MapetError(f"{self.folder} takes tokens from 0 to {self.vocabulary - 1} only.")
        if bad := [image_id for image_id in image_ids if "\n" in image_id]:
            raise MapetError(f"The image id {bad[0]!r} has a line break: rename the image.")

    def _sizes_on_disk(self) -> tuple[int, int]:
        """Current bytes of tokens and image ids on the disk."""
        paths = (self.folder / TOKENS, self.folder / KEYS)
        tokens, image_ids = (path.stat().st_size if path.exists() else 0 for path in paths)
        return tokens, image_ids

    def _recover(self) -> None:
        """Read the image ids of all complete rows."""
        complete = self._sizes[0] // (2 * self.length)
        with _lines(self.folder / KEYS) as lines:
            clash = self._index.add(self._complete(islice(lines, complete)))
        if clash is not None:
            raise MapetError(f"{self.folder / KEYS} names an image twice (line {clash + 1}): tokenize again.")
        self._tokens = self._mapped(len(self))

    def _complete(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """The complete lines without line breaks; counts their bytes."""
        for line in lines:
            if line.endswith(b"\n"):
                self._end_of_ids += len(line)
                yield line[:-1]

    def _mapped(self, count: int) -> NDArray[np.uint16]:
        if not count:
            return np.empty((0, self.length), "<u2")
        return np.memmap(self.folder / TOKENS, "<u2", mode="r", shape=(count, self.length))


def _lines(path: Path) -> Any:
    return path.open("rb") if path.exists() else open(os.devnull, "rb")


def _same_aspect(one: CenterCropResize, other: CenterCropResize) -> bool:
    return one.size[0] * other.size[1] == one.size[1] * other.size[0]


def _view_text(view: CenterCropResize) -> str:
    return f"a {view.interpolation} view of {view.size[0]}x{view.size[1]} pixels"


def _require_same(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Compare two headers, the extra fields one by one."""
    there, here = ({**header, **(header.get("extra") or {})} for header in (found, wanted))
    for name in dict.fromkeys([*here, *there]):
        if name != "extra" and there.get(name) != here.get(name):
            raise MapetError(
                f"{folder} holds tokens with {name} {there.get(name)}, not {here.get(name)}: choose another folder."
            )
