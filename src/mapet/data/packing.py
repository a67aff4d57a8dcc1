"""Writes packed folders; ``packed`` documents the format.

Ids, labels and offsets are written first, then the header. From then on ``offsets.npy`` counts the packed images, whose
bytes are flushed to the disk before they are counted. So ``pack`` completes a folder after a kill at any moment, to the
same bytes; ids and labels are those of the dataset, whatever happened to their files.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from shutil import disk_usage
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from mapet.data.dataset import ImageDataset
from mapet.data.decode import Faults, Group, decode, record_faults, require_shown
from mapet.data.image import UnreadableImage
from mapet.data.packed import (
    BAD,
    FORMAT,
    FORMS,
    HASHED,
    HEADER,
    IMAGES,
    KEYS,
    LABELS,
    OFFSETS,
    SUMS,
    JpegPack,
    RawPack,
    packed_count,
    read_header,
)
from mapet.data.unreadable import UnreadableImages
from mapet.data.workers import load
from mapet.utils.errors import MapetError, nearest
from mapet.utils.fingerprint import KEY, content_hash, file_hash, sealed
from mapet.utils.io import encode_id, replace_file, require_free, sync, write_from, writing
from mapet.utils.log import log
from mapet.utils.view import CenterCropResize

if TYPE_CHECKING:
    from PIL import Image

GROUP = 64  # images that are decoded and written together
MAX_SIZE = 4096  # pixels of a side
QUALITY = 95


@dataclass(frozen=True)
class Packing:
    """Format of a pack.

    Attributes:
        form: "uint8" (the view's pixels) or "jpeg" (the whole image as a JPEG).
        size: side of the view, or maximum of a JPEG's shorter side, in pixels.
        quality: JPEG quality, 1 … 100; None for 95. Only for "jpeg".

    Raises:
        MapetError: unknown form, or a number out of range.
    """

    form: str = RawPack.form
    size: int = 224
    quality: int | None = None

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise MapetError(f'There is no form "{self.form}".{nearest(self.form, FORMS)}')
        if not 1 <= self.size <= MAX_SIZE:
            raise MapetError(f"--size must be in 1 … {MAX_SIZE} pixels, got {self.size}.")
        if self.quality is not None and self.form != JpegPack.form:
            raise MapetError(f"--quality only applies to --form jpeg, not {self.form}; remove it.")
        if not 1 <= self.jpeg_quality <= 100:
            raise MapetError(f"--quality must be in 1 … 100, got {self.quality}.")

    @property
    def jpeg_quality(self) -> int:
        """The quality, with its default."""
        return QUALITY if self.quality is None else self.quality

    @property
    def view(self) -> CenterCropResize:
        """The view of a uint8 pack; JPEGs use its interpolation, too."""
        return CenterCropResize((self.size, self.size))

    @property
    def row(self) -> int:
        """Bytes per image in a uint8 pack."""
        return 3 * self.size**2

    def jpeg(self, image: "Image.Image") -> bytes:
        """Encode the whole image as a JPEG; a shorter side above ``size`` is reduced to ``size``.

        Raises:
            UnreadableImage: a side longer than JPEG allows.
        """
        from PIL import Image

        shorter = min(image.size)
        if shorter > self.size:
            sides = [max(1, round(side * self.size / shorter)) for side in image.size]
            image = image.resize((sides[0], sides[1]), Image.Resampling[self.view.interpolation.upper()])
        content = BytesIO()
        try:
            image.save(content, "JPEG", quality=self.jpeg_quality)
        except OSError as error:
            raise UnreadableImage(f"{image.width} x {image.height} pixels do not fit into a JPEG") from error
        return content.getvalue()


def begin(folder: Path, source: ImageDataset, packing: Packing, about: dict[str, Any]) -> None:
    """Create a pack without pixels, or check that an incomplete one in ``folder`` has the same arguments.

    Args:
        folder: missing, empty, or an incomplete pack.
        source: dataset.
        packing: format.
        about: header fields: ``source``, the dataset's name; ``command``, which completes the pack; and any others.

    Raises:
        MapetError: the folder has other content, or is a pack of other images or settings; or the disk is too small.
    """
    require_shown(source, [packing.view] if packing.form == RawPack.form else [])
    header = _header(source, packing, about)
    if (folder / HEADER).is_file():
        _require_same(folder, header)
        for name in _write_lists(folder, source):
            log.info(f"note      {folder / name} was damaged and is written again from the images' own")
        return
    require_free(folder, [name + end for name in (KEYS, LABELS, OFFSETS, HEADER) for end in ("", ".part")])
    folder.mkdir(parents=True, exist_ok=True)
    _require_room(folder, packing, len(source))
    _write_lists(folder, source)
    replace_file(folder / OFFSETS, _saved(np.concatenate([[0], np.full(len(source), -1)])))
    _write_header(folder, header)


def _write_lists(folder: Path, source: ImageDataset) -> list[str]:
    """Write the files of ids and labels, unless they are right. Returns which were not."""
    part = folder / f"{KEYS}.part"
    with writing(part), part.open("wb") as file:
        file.writelines(encode_id(source.image_id(i)) + b"\n" for i in range(len(source)))
    sync(part)
    wrong = [KEYS] if not (folder / KEYS).is_file() or file_hash(part) != file_hash(folder / KEYS) else []
    part.replace(folder / KEYS)
    labels, path = _saved(_labels(source)), folder / LABELS
    if not path.is_file() or path.read_bytes() != labels:
        replace_file(path, labels)
        wrong.append(LABELS)
    return wrong


def _saved(array: NDArray[np.int64]) -> bytes:
    """An array as a ``.npy`` file."""
    content = BytesIO()
    np.save(content, array)
    return content.getvalue()


def _write_header(folder: Path, header: dict[str, Any]) -> None:
    replace_file(folder / HEADER, json.dumps(sealed(header), indent=1) + "\n")


def pack(
    folder: Path, source: ImageDataset, packing: Packing, *, workers: int = 0, max_bad_fraction: float = 0.01
) -> Iterator[int]:
    """Complete a pack; yields the number of packed images first and after each group. The caller holds its lock.

    Raises:
        MapetError: too many unreadable images, or a damaged folder.
    """
    done, header = packed_count(folder), read_header(folder)
    yield done
    if header["complete"]:
        return
    offsets = np.load(folder / OFFSETS, mmap_mode="r+")
    _require_pixels(folder, int(offsets[done]))
    _hash_begun(folder, offsets[: done + 1])
    bad = UnreadableImages(len(source), max_bad_fraction, folder / BAD)
    groups = (_raw if packing.form == RawPack.form else _jpegs)(source, packing, done, workers, bad)
    for sizes, content in groups:
        write_from(folder / IMAGES, int(offsets[done]), content)
        write_from(folder / SUMS, 8 * done, _hashes(np.cumsum([0, *sizes]), content))
        offsets[done + 1 : done + 1 + len(sizes)] = offsets[done] + np.cumsum(sizes)
        offsets.flush()
        done += len(sizes)
        yield done
    sync(folder / OFFSETS)
    hashes = {name: file_hash(folder / name) for name in HASHED}
    _write_header(folder, {**header, "complete": True, "files": hashes})


def _hashes(ends: NDArray[np.int64], content: Any) -> bytes:
    """Hashes of the images between ``ends`` (N + 1,) in the content."""
    view = memoryview(content)
    found = [content_hash(view[start:end]) for start, end in pairwise(ends.tolist())]
    return np.array(found, "<u8").tobytes()


def _hash_begun(folder: Path, offsets: NDArray[np.int64]) -> None:
    """Add the hashes that a pack begun by version 0.1 lacks."""
    path, count = folder / SUMS, len(offsets) - 1
    if count > (path.stat().st_size // 8 if path.exists() else 0):
        content = np.memmap(folder / IMAGES, np.uint8, "r") if offsets[-1] else b""
        replace_file(path, _hashes(offsets, content))


def _require_pixels(folder: Path, size: int) -> None:
    path = folder / IMAGES
    if size > (path.stat().st_size if path.exists() else 0):
        raise MapetError(f"{path} is truncated: delete {folder} and pack again.")


Encoded = Iterator[tuple[NDArray[np.int64], bytes]]  # per group: bytes of each image, 0 if unreadable; the content


def _raw(source: ImageDataset, packing: Packing, first: int, workers: int, bad: UnreadableImages) -> Encoded:
    batches = decode(source, [packing.view], _groups(first, len(source)), workers=workers, bad=bad)
    for (_, indices), batch in zip(_groups(first, len(source)), batches, strict=True):
        yield np.isin(indices, batch.index) * packing.row, batch.images.numpy().tobytes()


def _jpegs(source: ImageDataset, packing: Packing, first: int, workers: int, bad: UnreadableImages) -> Encoded:
    items = load(_Jpegs(source, packing), _groups(first, len(source)), workers)
    for files in record_faults(items, source, bad):
        yield np.array([len(file) for file in files]), b"".join(files)


class _Jpegs(Dataset[tuple[list[bytes], Faults]]):
    """Reads and compresses one group of images per item; an unreadable image has no bytes."""

    def __init__(self, source: ImageDataset, packing: Packing) -> None:
        self.source, self.packing = source, packing

    def __getitem__(self, group: Group) -> tuple[list[bytes], Faults]:
        files, faults = [], []
        for index in group[1]:
            try:
                files.append(self.packing.jpeg(self.source.read(index)))
            except UnreadableImage as reason:
                files.append(b"")
                faults.append((index, str(reason)))
        return files, faults


def _groups(first: int, count: int) -> Iterator[Group]:
    return ((0, range(start, min(start + GROUP, count))) for start in range(first, count, GROUP))


def _header(source: ImageDataset, packing: Packing, about: dict[str, Any]) -> dict[str, Any]:
    quality = packing.jpeg_quality if packing.form == JpegPack.form else None
    header = {"format": FORMAT, "form": packing.form, "size": packing.size, "quality": quality}
    header |= {"interpolation": packing.view.interpolation, "count": len(source), "classes": list(source.classes)}
    return {**header, "keys": digest(source), **about, "complete": False}


def digest(source: ImageDataset) -> str:
    """BLAKE2b of all labels and image ids, ``keys`` in the header."""
    digest = blake2b(digest_size=16)
    for i in range(len(source)):
        digest.update(b"%d %b\n" % (source.label(i), encode_id(source.image_id(i))))
    return digest.hexdigest()


def _labels(source: ImageDataset) -> NDArray[np.int64]:
    return np.fromiter((source.label(i) for i in range(len(source))), np.int64, len(source))


def _require_same(folder: Path, wanted: dict[str, Any]) -> None:
    found = read_header(folder)
    for name in [name for name in wanted if name not in ("command", "complete", KEY)]:
        before, now = found.get(name), wanted[name]
        if before != now:
            text = "other images or labels" if name in ("keys", "classes") else f"{name} {before}, not {now}"
            raise MapetError(f"{folder} was packed with {text}: give another --out, or delete it and pack again.")


def _require_room(folder: Path, packing: Packing, count: int) -> None:
    needed, free = count * packing.row, disk_usage(folder).free
    if packing.form == RawPack.form and needed > free:
        raise MapetError(
            f"{count:,} images of {packing.size} x {packing.size} pixels need {needed / 2**30:,.1f} GiB as uint8, "
            f"and {folder} has {free / 2**30:,.1f} GiB left: use --form jpeg, a smaller --size or another disk."
        )
