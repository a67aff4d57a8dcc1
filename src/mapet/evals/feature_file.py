"""Features of images in an .npz or .parquet file, written and read a few megabytes at a time.

An .npz file holds ``features`` (N, …, F) float32, ``image_ids`` (N,), the ids ``unreadable`` (M,) of the images that
are left out with their ``reasons`` (M,), and ``about``, a JSON object. A .parquet file has the columns ``image_id``
and ``features`` (all numbers of an image in one list), and the rest in its metadata ``mapet``.
"""

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib.util import find_spec
from itertools import chain
from math import prod
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from mapet.utils.errors import MapetError, reason

FORMAT = "mapet features 1"
SUFFIXES = (".npz", ".parquet")
CHUNK = 1 << 20  # bytes
FAULTS = (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error, NotImplementedError)

Rows = NDArray[np.float32]
Chunks = Callable[[], Iterator[tuple[Sequence[str], Rows]]]  # image ids, and one row for each


class Embeddings:
    """Features of images, in a file or in memory.

    Attributes:
        about: how they were made: encoder, layer, pooling, view of the images.
        unreadable: the reason for each image that was left out, by image id.
        path: the file; None in memory.
    """

    def __init__(
        self, about: Mapping[str, Any], unreadable: Mapping[str, str], chunks: Chunks, path: Path | None = None
    ) -> None:
        self.about, self.unreadable, self.path = dict(about), dict(unreadable), path
        self.chunks = chunks

    @classmethod
    def open(cls, path: str | Path) -> "Embeddings":
        """The features of a file that ``embed`` wrote; nothing but their description is read yet.

        Raises:
            MapetError: there is no such file, it is damaged or something else, or .parquet without pyarrow.
        """
        path = Path(path).expanduser()
        require_suffix(path)
        if not path.is_file():
            raise MapetError(f"There is no file {path}: write one with mapet embed.")
        with _reading(path):
            about, unreadable = _about(path)
        read = _npz_chunks if path.suffix == ".npz" else _parquet_chunks
        return cls(about, unreadable, lambda: read(path, about["shape"]), path)

    def __len__(self) -> int:
        return int(self.about["readable"])

    @cached_property
    def image_ids(self) -> list[str]:
        """The ids of the images, in the order of the rows."""
        return list(chain.from_iterable(ids for ids, _ in self.chunks()))

    @cached_property
    def features(self) -> Rows:
        """All rows, (N, F) or (N, L, F)."""
        features = np.empty((len(self), *self.about["shape"]), np.float32)
        end = 0
        for _, rows in self.chunks():
            features[end : end + len(rows)] = rows
            end += len(rows)
        return features


def require_suffix(path: Path) -> None:
    """Refuse a file name of another format, and .parquet where it cannot be read.

    Raises:
        MapetError: what is missing.
    """
    if path.suffix not in SUFFIXES:
        raise MapetError(f"A file of features ends in {' or '.join(SUFFIXES)}, got {path}.")
    if path.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise MapetError(f"{path} needs the package pyarrow: pip install 'mapet[parquet]', or use a .npz file.")


def is_ours(path: Path) -> bool:
    """Whether ``write`` wrote the file."""
    with suppress(*FAULTS):
        return bool(_about(path)[0])
    return False


def write(path: Path, kind: str, about: Mapping[str, Any], unreadable: Mapping[str, str], chunks: Chunks) -> None:
    """Write a file.

    Args:
        path: the file.
        kind: ".npz" or ".parquet".
        about: JSON fields, among them ``shape`` of a row and ``readable``, the number of rows.
        unreadable: reasons by image id.
        chunks: read once, or twice for .npz.
    """
    if kind == ".npz":
        _write_npz(path, about, unreadable, chunks)
    else:
        _write_parquet(path, about, unreadable, chunks)


def _write_npz(path: Path, about: Mapping[str, Any], unreadable: Mapping[str, str], chunks: Chunks) -> None:
    width, text = 1, json.dumps({"format": FORMAT, **about})
    with ZipFile(path, "w") as file:
        with _member(file, "features", ZIP_STORED) as member:
            _header(member, "<f4", (about["readable"], *about["shape"]))
            for ids, rows in chunks():
                member.write(np.ascontiguousarray(rows, "<f4").data)
                width = max(width, *map(len, ids), 1)
        with _member(file, "image_ids") as member:
            _header(member, f"<U{width}", (about["readable"],))
            for ids, _ in chunks():
                member.write(np.array(ids, f"<U{width}").tobytes())
        others = {"unreadable": [*unreadable], "reasons": [*unreadable.values()], "about": text}
        for name, value in others.items():
            with _member(file, name) as member:
                npy.write_array(member, np.array(value, np.str_), allow_pickle=False)


def _member(file: ZipFile, name: str, method: int = ZIP_DEFLATED) -> IO[bytes]:
    """A member with a fixed date, so that equal features are equal files."""
    info = ZipInfo(f"{name}.npy")
    info.compress_type = method
    return file.open(info, "w", force_zip64=True)


def _header(member: IO[bytes], kind: str, shape: tuple[int, ...]) -> None:
    npy.write_array_header_1_0(member, {"descr": kind, "fortran_order": False, "shape": shape})


def _about(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        about = json.loads((pq.read_schema(path).metadata or {})[b"mapet"])
        unreadable = about.pop("unreadable")
    else:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            unreadable = dict(zip(file["unreadable"].tolist(), file["reasons"].tolist(), strict=True))
    if about["format"] != FORMAT:
        raise ValueError(f"its format is {about['format']}")
    return about, unreadable


def _npz_chunks(path: Path, shape: Sequence[int]) -> Iterator[tuple[list[str], Rows]]:
    with _reading(path), ZipFile(path) as file, file.open("features.npy") as rows, file.open("image_ids.npy") as ids:
        count, kind = _opened(rows)
        same, text = _opened(ids)
        if kind != np.dtype("<f4") or text.kind != "U" or same[0] != count[0] or count[1:] != tuple(shape):
            raise ValueError("its arrays do not fit each other")
        step = max(1, CHUNK // (4 * prod(shape)))
        for first in range(0, count[0], step):
            size = min(step, count[0] - first)
            names = np.frombuffer(_exactly(ids, size * text.itemsize), text).tolist()
            content = _exactly(rows, size * 4 * prod(shape))
            yield names, np.frombuffer(content, kind).reshape(size, *shape)


def _opened(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of a .npy file, whose content follows."""
    npy.read_magic(member)
    shape, fortran, kind = npy.read_array_header_1_0(member)
    if fortran:
        raise ValueError("an array in Fortran order")
    return shape, kind


def _exactly(member: IO[bytes], size: int) -> bytes:
    content = member.read(size)
    if len(content) != size:
        raise ValueError("it ends early")
    return content


def _write_parquet(path: Path, about: Mapping[str, Any], unreadable: Mapping[str, str], chunks: Chunks) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = json.dumps({"format": FORMAT, **about, "unreadable": dict(unreadable)})
    kind = pa.list_(pa.float32(), prod(about["shape"]))
    schema = pa.schema([("image_id", pa.string()), ("features", kind)], {"mapet": text})
    with pq.ParquetWriter(path, schema, use_dictionary=False, write_page_checksum=True) as file:
        for ids, rows in chunks():
            flat = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), type=kind)
            file.write_batch(pa.record_batch([pa.array(ids, pa.string()), flat], schema))


def _parquet_chunks(path: Path, shape: Sequence[int]) -> Iterator[tuple[list[str], Rows]]:
    import pyarrow.parquet as pq

    step = max(1, CHUNK // (4 * prod(shape)))
    with _reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        for batch in file.iter_batches(step):
            rows = batch.column("features").flatten().to_numpy(zero_copy_only=False)
            yield batch.column("image_id").to_pylist(), rows.reshape(-1, *shape)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what a damaged file raises into one line.

    Raises:
        MapetError: the file and the fault.
    """
    try:
        yield
    except FAULTS as error:
        raise MapetError(
            f"{path} is damaged, or mapet embed did not write it ({reason(error)}): embed the images again."
        ) from error
