"""Tokens on disk, found by image id.

A folder of ``tokens.bin`` (little-endian uint16, N × L), ``sums.bin`` (hashes of the rows), ``keys.txt`` (one image id
per line) and ``store.json`` (header with its hash). A row counts if it is complete in all three; what a kill leaves
behind the last such row is ignored, and truncated by the next ``append``. A writer holds the folder's lock, so a second
writer is refused.

Opening a store verifies header and image ids, and reading rows verifies these. Stores of version 0.1 have no hashes;
the first ``append`` adds them.
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

from mapet.tokenizers import sums
from mapet.tokenizers.id_index import IdIndex, hashes
from mapet.tokenizers.store_checks import require_fitting, require_same, row_fault, same_aspect, view_text
from mapet.utils.errors import MapetError
from mapet.utils.fingerprint import KEY, is_intact, sealed
from mapet.utils.io import encode_id, read_json, replace_file, write_from
from mapet.utils.lock import Lock
from mapet.utils.view import CenterCropResize

FORMAT, UNVERIFIED = "mapet tokens 2", "mapet tokens 1"  # the second, of version 0.1, has no hashes
BATCH = 1 << 16  # image ids looked up at a time
TOKENS, SUMS, KEYS, HEADER = "tokens.bin", sums.FILE, "keys.txt", "store.json"
WRITING = "writing tokens into"  # activity of the lock


class TokenStore:
    """The tokens of many images: ``create`` or ``open`` one. One process at a time appends, any number may read.

    Attributes:
        view: the tokenizer's view, at its input size.
        grid: (rows, columns) of patches, L = rows × columns.
        vocabulary: tokens are below it.
        tokenizer: hash of the tokenizer.
        extra: further header fields.
        verified: whether the rows have hashes.
    """

    def __init__(self, folder: Path, header: dict[str, Any]):
        self.folder = folder
        try:
            self.view = CenterCropResize.from_dict(header["view"])
            self.grid: tuple[int, int] = (int(header["grid"][0]), int(header["grid"][1]))
            self.vocabulary, self.tokenizer = int(header["vocabulary"]), str(header["tokenizer"])
            self.extra: dict[str, Any] = header["extra"]
            self.verified = header["format"] == FORMAT
            known = (header["format"] == UNVERIFIED or (KEY in header and is_intact(header))) and min(self.grid) > 0
            known &= header["format"] in (FORMAT, UNVERIFIED)
        except (KeyError, IndexError, TypeError, ValueError):
            known = False
        if not known:
            raise MapetError(f"{folder / HEADER} is damaged or of another version: tokenize again.")
        self.length, self._header = self.grid[0] * self.grid[1], header
        self._index = IdIndex()
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
        header = sealed(header | {"vocabulary": vocabulary, "tokenizer": tokenizer, "extra": extra or {}})
        if (folder / HEADER).exists():
            store = cls.open(folder)
            require_same(folder, store._header, header)
            return store
        if (folder / TOKENS).exists() or (folder / KEYS).exists():
            raise MapetError(f"{folder} holds tokens without {HEADER}: choose another folder or empty it.")
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
        require_fitting(self.folder, image_ids, tokens, (self.length, self.vocabulary))
        self.reserve()
        self._add_hashes()
        lines, rows = [encode_id(image_id) for image_id in image_ids], tokens.cpu().numpy().astype("<u2")
        start, ids = len(self), hashes(lines)
        if (clash := self._index.add_hashes(ids)) is not None:
            raise MapetError(f'{self.folder} has the image "{image_ids[clash]}" already, or one with the same hash.')
        text = b"".join(line + b"\n" for line in lines)
        write_from(self.folder / TOKENS, start * 2 * self.length, rows.tobytes())
        write_from(self.folder / SUMS, start * sums.ROW, sums.encoded(ids, rows))
        write_from(self.folder / KEYS, self._end_of_ids, text)
        self._end_of_ids += len(text)
        self._sizes = self._sizes_on_disk()
        self._map()

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
        """The tokens (L,) of one image; raises as ``read``."""
        return self.read(self.rows([image_id]))[0]

    @property
    def tokens(self) -> NDArray[np.uint16]:
        """All rows (N, L), memory-mapped and not verified."""
        return self._tokens

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint16]:
        """The tokens (B, L) of rows (B,).

        Raises:
            MapetError: they are damaged: a row does not have its hash, or has a token outside the vocabulary.
        """
        found: NDArray[np.uint16] = self._tokens[rows]
        if fault := row_fault(found, self.vocabulary, self._sums[rows] if self.verified else None):
            row = int(rows[fault[0]])
            image_id = next(islice(self.image_ids(), row, None))
            raise MapetError(
                f'{self.folder / TOKENS} is damaged: row {row}, of the image "{image_id}", has {fault[1]}. '
                f"Restore it, or delete the tokens in {self.folder} and tokenize again."
            )
        return found

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
        """The tokens of many images: (B, L) int64; raises as ``rows`` and ``read``."""
        return torch.from_numpy(self.read(self.rows(image_ids)).astype(np.int64))

    def check(
        self, *, source_name: str, image_ids: Iterable[str], view: CenterCropResize, grid: tuple[int, int]
    ) -> None:
        """Require that the store fits a dataset, and the view and grid of a student; the student's size may differ.

        Raises:
            MapetError: another crop, interpolation or grid, or images without tokens.
        """
        if view.interpolation != self.view.interpolation or not same_aspect(view, self.view):
            raise MapetError(
                f"{self.folder} was made with {view_text(self.view)}, but the student uses {view_text(view)}: "
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

    def expected_sizes(self) -> dict[str, int]:
        """Bytes of the files without what an interruption left behind, by name."""
        sizes = {TOKENS: len(self) * 2 * self.length, SUMS: len(self) * sums.ROW, KEYS: self._end_of_ids}
        return {name: size for name, size in sizes.items() if (name != SUMS or self.verified) and len(self)}

    def _sizes_on_disk(self) -> tuple[int, int, int]:
        """Current bytes of tokens, hashes and image ids on the disk."""
        paths = (self.folder / name for name in (TOKENS, SUMS, KEYS))
        tokens, hashed, image_ids = (path.stat().st_size if path.exists() else 0 for path in paths)
        return tokens, hashed, image_ids

    def _recover(self) -> None:
        """Read and verify the image ids of all complete rows."""
        complete = self._sizes[0] // (2 * self.length)
        if self.verified:
            complete = min(complete, self._sizes[1] // sums.ROW)
        with _lines(self.folder / KEYS) as lines:
            ids = hashes(self._complete(islice(lines, complete)))
        if (clash := self._index.add_hashes(ids)) is not None:
            raise MapetError(f"{self.folder / KEYS} names an image twice (line {clash + 1}): tokenize again.")
        self._map()
        if self.verified and len(wrong := np.flatnonzero(ids != self._sums[:, 0])):
            raise MapetError(
                f"{self.folder} is damaged: line {wrong[0] + 1} of {KEYS} does not match its hash in {SUMS}. "
                f"Restore them, or delete the tokens in {self.folder} and tokenize again."
            )

    def _add_hashes(self) -> None:
        """Give a store of version 0.1 the hashes of its rows."""
        if self.verified:
            return
        with _lines(self.folder / KEYS) as lines:
            ids = hashes(line[:-1] for line in islice(lines, len(self)))
        replace_file(self.folder / SUMS, sums.encoded(ids, self._tokens))
        self._header = sealed({**self._header, "format": FORMAT})
        replace_file(self.folder / HEADER, json.dumps(self._header, indent=2).encode())
        self.verified, self._sizes = True, self._sizes_on_disk()
        self._map()

    def _complete(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """The complete lines without line breaks; counts their bytes."""
        for line in lines:
            if line.endswith(b"\n"):
                self._end_of_ids += len(line)
                yield line[:-1]

    def _map(self) -> None:
        """Map all complete rows into memory."""
        count, path = len(self), self.folder / TOKENS
        self._tokens: NDArray[np.uint16] = np.empty((0, self.length), "<u2")
        if count:
            self._tokens = np.memmap(path, "<u2", mode="r", shape=(count, self.length))
        self._sums = sums.mapped(self.folder / SUMS, count if self.verified else 0)


def _lines(path: Path) -> Any:
    return path.open("rb") if path.exists() else open(os.devnull, "rb")
