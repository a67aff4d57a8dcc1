"""A table with one row per image that is being written: a kill at any moment can be resumed."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from itertools import islice
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.utils.errors import MapetError
from mapet.utils.io import encode_id, load_json, replace_file, require_free, sync, write_from, writing
from mapet.utils.lock import Lock
from mapet.utils.owned import Tree, discard, find_foreign
from mapet.utils.signals import held

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mapet.api.model_pass import ModelPass
    from mapet.data.dataset import ImageDataset

    Rows = NDArray[np.float32]

FORMAT = "mapet images 1"
ABOUT, LINES, ROWS, RESULT = "about.json", "lines.txt", "rows.bin", "result"
TREE: Tree = {r"about\.json(\.part)?|lines\.txt|rows\.bin|result|\.lock": None}
CHUNK = 1 << 20  # bytes of rows that are read at a time

Line = tuple[str, str]  # image id, and why the image is unreadable; empty if it is not


class Journal:
    """The table of a file ``out``, in the folder ``OUT.part`` next to it.

    ``about.json`` says what is written, ``lines.txt`` has a line ``id<TAB>reason`` for each image, and ``rows.bin`` a
    row for each readable one. A resumed call computes the same batches, as only complete ones are kept.

    Attributes:
        done: images in the table.
        readable: rows in the table.
        unreadable: lines without a row.

    Args:
        out: the file.
        about: JSON fields.
        source: the images; one that could not be read and now can is read again.
        shape: of a row.
        batch_size: images of a batch.
        overwrite: begin anew if an earlier call had another ``about``.

    Raises:
        MapetError: another process writes there, an earlier call had another ``about``, or foreign files lie there.
    """

    def __init__(
        self,
        out: Path,
        about: Mapping[str, Any],
        source: "ImageDataset",
        shape: Sequence[int],
        batch_size: int,
        overwrite: bool,
    ) -> None:
        self.out, self.source, self.folder, self.shape = out, source, out.with_name(f"{out.name}.part"), tuple(shape)
        self.about: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **about}))
        self.done = self.readable = self._end = 0
        self.unreadable: list[Line] = []
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(self.folder, "writing into")
        try:
            self._begin(overwrite)
            self._recover(batch_size)
        except BaseException:
            self._lock.release()
            raise

    def _begin(self, overwrite: bool) -> None:
        found = load_json(self.folder / ABOUT)
        if found == self.about:
            return
        if found is None:
            require_free(self.folder, [f"{ABOUT}.part"])
        elif not isinstance(found, dict) or found.get("format") != FORMAT or find_foreign(self.folder, TREE):
            raise MapetError(
                f"--out {self.out} is made in {self.folder}, which holds files that mapet did not write: give another."
            )
        elif not overwrite:
            name = next(name for name in {**self.about, **found} if found.get(name) != self.about.get(name))
            raise MapetError(
                f"--out {self.out} was begun with {name} {found.get(name)}, not {self.about.get(name)}: begin anew "
                "with --overwrite, or give another."
            )
        for name in (LINES, ROWS, RESULT):
            (self.folder / name).unlink(missing_ok=True)
        replace_file(self.folder / ABOUT, json.dumps(self.about, indent=1) + "\n")

    def _recover(self, batch_size: int) -> None:
        """Find the end of the last complete batch."""
        path, count, rows, end, bad = self.folder / ROWS, 0, 0, 0, list[Line]()
        complete = path.stat().st_size // self._row_bytes if path.exists() else 0
        for line in self._lines():
            rows += not line[1]
            if rows > complete or (line[1] and self._reads(count)):
                break
            bad += [line] if line[1] else []
            count, end = count + 1, end + len(_encoded(line))
            if count % batch_size == 0 or count == len(self.source):
                self.done, self.readable, self._end, self.unreadable = count, rows, end, list(bad)

    def _reads(self, index: int) -> bool:
        from mapet.data.image import UnreadableImage

        with suppress(UnreadableImage):
            self.source.read(index)
            return True
        return False

    def append(self, lines: Sequence[Line], rows: "Rows | None") -> None:
        """Add a batch; it is on the disk when this returns. ``rows`` is None if no image of it is readable."""
        if rows is not None:
            write_from(self.folder / ROWS, self.readable * self._row_bytes, rows.astype("<f4").tobytes())
            self.readable += len(rows)
        text = b"".join(map(_encoded, lines))
        write_from(self.folder / LINES, self._end, text)
        self.done, self._end = self.done + len(lines), self._end + len(text)
        self.unreadable += [line for line in lines if line[1]]

    def chunks(self) -> "Iterator[tuple[list[Line], Rows]]":
        """The whole table, about a megabyte at a time: lines, and the rows of the readable images among them."""
        import numpy as np

        lines = islice(self._lines(), self.done)
        with (self.folder / ROWS).open("rb") as file:
            while part := list(islice(lines, max(1, CHUNK // self._row_bytes))):
                count = sum(not reason for _, reason in part)
                content = file.read(count * self._row_bytes)
                yield part, np.frombuffer(content, "<f4").reshape(count, *self.shape)

    def finish(self, write: Callable[[Path], None]) -> None:
        """Let ``write`` write the file, move it to ``out``, and delete the folder."""
        result = self.folder / RESULT
        with writing(self.out):
            write(result)
            sync(result)
        with writing(self.out), held():
            os.replace(result, self.out)
            sync(self.out.parent)
            self._lock.release()
            discard(self.folder, TREE)

    def release(self) -> None:
        """Let other processes in; the folder stays."""
        self._lock.release()

    @property
    def _row_bytes(self) -> int:
        return 4 * prod(self.shape)

    def _lines(self) -> Iterator[Line]:
        """The complete lines."""
        if not (self.folder / LINES).exists():
            return
        with (self.folder / LINES).open("rb") as file:
            for line in file:
                image_id, tab, reason = line[:-1].decode("utf-8", "surrogateescape").partition("\t")
                if not tab or not line.endswith(b"\n"):
                    return
                yield image_id, reason


def fill(run: "ModelPass", label: str, journal: Journal, write: Callable[[Path], None]) -> None:
    """Add the images that the table lacks, and write the file."""
    try:
        for lines, rows in run(label, journal.done, journal.unreadable):
            journal.append(lines, rows)
        journal.finish(write)
    finally:
        journal.release()


def collect(run: "ModelPass", label: str) -> "tuple[list[Line], Rows]":
    """The table in memory: all lines, and the rows of the readable images."""
    import numpy as np

    lines, rows = zip(*run(label), strict=True)
    return [line for part in lines for line in part], np.concatenate([part for part in rows if part is not None])


def unreadable_note(unreadable: Mapping[str, str], count: int, where: str) -> str:
    """A line with the number and the first three."""
    few = ", ".join(f"{image_id} ({reason})" for image_id, reason in islice(unreadable.items(), 3))
    more = ", …" if len(unreadable) > 3 else ""
    return f"{len(unreadable):,} of {count:,} images are unreadable and {where}: {few}{more}"


def identity(source: "ImageDataset") -> dict[str, Any]:
    """The images of a table: their name and number, and a hash of their ids."""
    found = blake2b(digest_size=16)
    for index in range(len(source)):
        found.update(encode_id(f"{source.image_id(index)}\n"))
    return {"images": source.name, "count": len(source), "image_ids": found.hexdigest()}


def _encoded(line: Line) -> bytes:
    return encode_id("\t".join(line) + "\n")
