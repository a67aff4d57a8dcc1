"""Packed folders: images that ``mapet pack`` decoded once, for fast loading.

    pack.json              settings and dataset, with their hash; ``complete`` is true when everything is written, and
                           ``files`` has hashes of the other small files then
    pictures.bin           the images, one after another
    offsets.npy            (N + 1,) int64: image i is bytes offsets[i] … offsets[i + 1]; -1: not packed yet
    keys.txt               image ids of the original dataset, one per line
    labels.npy             (N,) int64, -1 for unlabelled
    sums.bin               (N,) uint64, little-endian: hash of each image's bytes
    unreadable-images.txt  unreadable images with their reasons, if there are any

Images keep their ids, labels and indices; an unreadable image has no bytes and is unreadable here, too. So a training
stream over a pack has the same images in each step as one over the original dataset, and tokens fit both.

A ``uint8`` pack is bit-identical to the original in the pack's view and has the original's name: a token store may be
started with the one and completed with the other. A ``jpeg`` pack is resized and compressed and has its own name: it
may be trained with tokens of the original, which ``mapet pretrain`` logs, but one store cannot mix tokens of both.

Opening a pack verifies all files but the images. An image is verified when a process reads it first, and is
unreadable if it was changed. Packs of version 0.1 have no hashes; only the sizes of their files are compared.
"""

import mmap
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mapet.data.folder import HELD_OUT_NAMES
from mapet.data.image import UnreadableImage, decode_image
from mapet.data.pack_files import array, damaged, mapped
from mapet.data.packed_strings import PackedLines
from mapet.data.unreadable import listed
from mapet.utils.errors import MapetError
from mapet.utils.fingerprint import content_hash, file_hash, is_intact
from mapet.utils.io import read_json
from mapet.utils.view import CenterCropResize

if TYPE_CHECKING:
    from PIL import Image

FORMAT = "mapet pack 1"
WHAT = "a packed folder"
HEADER, IMAGES, OFFSETS = "pack.json", "pictures.bin", "offsets.npy"
KEYS, LABELS, SUMS, BAD = "keys.txt", "labels.npy", "sums.bin", "unreadable-images.txt"
HASHED = (KEYS, LABELS, OFFSETS, SUMS)  # by the header of a complete pack
DAMAGED = "its bytes in the pack were changed"
FIELDS = {"form", "size", "interpolation", "source", "classes", "count", "complete", "command"}


class Packed:
    """A packed folder as a dataset; base class of ``RawPack`` and ``JpegPack``.

    Attributes:
        folder: the packed folder.
        original: name of the dataset that was packed.
        classes: class names of that dataset.
        verified: whether the pack has hashes.

    Raises:
        MapetError: incomplete, damaged or of another version.
    """

    form: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        header = read_header(folder)
        if not header["complete"]:
            raise MapetError(_incomplete_text(folder, header))
        self.folder, self.original = folder, str(header["source"])
        try:
            self.classes: tuple[str, ...] = tuple(header["classes"])
            self.size, self.view = (
                int(header["size"]),
                CenterCropResize((header["size"], header["size"]), header["interpolation"]),
            )
            self._offsets, self._labels = (array(folder / name) for name in (OFFSETS, LABELS))
            self._ids = PackedLines(folder / KEYS)
            self._file = mapped(folder / IMAGES)
            self._bytes = np.frombuffer(self._file, np.uint8)
            fault = self._fault(header["count"]) or self._changed(header.get("files"))
        except (OSError, TypeError, ValueError) as error:
            raise damaged(folder, error) from error
        if fault:
            raise damaged(folder, fault)
        self._seen = np.zeros(len(self._labels), np.uint8)  # 1: verified, 2: damaged

    def __reduce__(self) -> tuple[type["Packed"], tuple[Path]]:
        """A worker process maps the files itself."""
        return type(self), (self.folder,)

    @property
    def name(self) -> str:
        """The pack's name, which names the original."""
        return f"{self.form} pack {self.folder} of {self.original}"

    def __len__(self) -> int:
        return len(self._labels)

    def image_id(self, i: int) -> str:
        """The image id of the original dataset."""
        return self._ids[i]

    def label(self, i: int) -> int:
        """The label of the original dataset."""
        return int(self._labels[i])

    def read(self, i: int) -> "Image.Image":
        """The image, mode RGB; raises ``UnreadableImage`` if the original image was unreadable."""
        start, end = self._offsets[i], self._offsets[i + 1]
        if start == end or not self.intact([i]).all():
            raise UnreadableImage(self.reason(i))
        return self._image(self._bytes[start:end])

    def content(self, i: int) -> tuple[str, bytes]:
        """The bytes of the image, and what they are; none if it is unreadable."""
        return f"{self.form} pack", self._bytes[self._offsets[i] : self._offsets[i + 1]].tobytes()

    def reason(self, i: int) -> str:
        """Why image ``i`` is unreadable."""
        if self._seen[i] > 1:
            return DAMAGED
        return self._reasons.get(self.image_id(i), "unreadable when it was packed")

    def intact(self, indices: Sequence[int]) -> NDArray[np.bool_]:
        """Which of the images (N,) have their hash: (N,). Each is read for it once."""
        rows = np.asarray(indices, np.int64)
        if not self.verified:
            return np.ones(len(rows), bool)
        for i in np.unique(rows[self._seen[rows] == 0]).tolist():
            found = content_hash(self._bytes[self._offsets[i] : self._offsets[i + 1]].data)
            self._seen[i] = 1 if found == self._sums[i] else 2
        return self._seen[rows] == 1

    @cached_property
    def _reasons(self) -> dict[str, str]:
        return listed(self.folder / BAD)

    def _image(self, content: NDArray[np.uint8]) -> "Image.Image":
        raise NotImplementedError

    def _changed(self, hashes: dict[str, str] | None) -> str:
        """The first changed file, by the hashes in the header; empty if there is none."""
        self.verified = hashes is not None
        self._sums = np.memmap(self.folder / SUMS, "<u8", "r") if hashes else np.empty(0, "<u8")
        changed = [name for name in HASHED if hashes and file_hash(self.folder / name) != hashes[name]]
        return f"{changed[0]} was changed" if changed else ""

    def _fault(self, count: int) -> str:
        """The first inconsistency of the files; empty if there is none."""
        if not len(self._ids) == len(self._labels) == len(self._offsets) - 1 == count:
            return f"{KEYS}, {LABELS} and {OFFSETS} are not of {count:,} images"
        if self._offsets[0] or (np.diff(self._offsets) < 0).any():
            return f"{OFFSETS} does not ascend from 0"
        if self._offsets[-1] != len(self._bytes):
            return f"{IMAGES} has {len(self._bytes):,} bytes, not {self._offsets[-1]:,}"
        return ""


class RawPack(Packed):
    """Form ``uint8``: each image in one view, (3, size, size) uint8."""

    form = "uint8"

    @property
    def name(self) -> str:
        """The name of the original dataset, to which the images are bit-identical."""
        return self.original

    def require(self, views: Sequence[CenterCropResize], whole: bool) -> None:
        """Require that all ``views`` equal the pack's view, and that ``whole`` images are read, without crops.

        Raises:
            MapetError: names both sides and the ways out.
        """
        side = f"{self.size} x {self.size} pixels"
        for view in views:
            if view != self.view:
                raise MapetError(
                    f"{self.folder} is a uint8 pack of {side}, {self.view.interpolation}, not "
                    f"{view.size[0]} x {view.size[1]} pixels, {view.interpolation}: give "
                    f"--image-size {self.size} or pack again with --size {view.size[0]} or --form jpeg; "
                    f"tokens of {self.original} itself fit, too."
                )
        if not whole:
            raise MapetError(
                f"{self.folder} is a uint8 pack of the central {side} and cannot be cropped by --scale or --crop-pct: "
                "remove them (mapet finetune: --scale 1 1 --ratio 1 1), or pack again with --form jpeg."
            )

    def pixels(self, indices: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Copies (B, 3, size, size) of the readable images at ``indices`` (N,), and which of them are readable (N,)."""
        starts, ends = (self._offsets[np.asarray(indices, np.int64) + step] for step in (0, 1))
        good = (ends > starts) & self.intact(indices)
        rows = self._bytes.reshape(-1, 3 * self.size**2).take(starts[good] // (3 * self.size**2), axis=0)
        return rows.reshape(-1, 3, self.size, self.size), good

    def prefetch(self, indices: Sequence[int]) -> None:
        """Ask the system to read the images at ``indices`` from the disk in the background."""
        if not (isinstance(self._file, mmap.mmap) and hasattr(mmap, "MADV_WILLNEED")):
            return
        rows = np.asarray(indices, np.int64)
        starts = self._offsets[rows] // mmap.PAGESIZE * mmap.PAGESIZE
        for start, end in zip(starts.tolist(), self._offsets[rows + 1].tolist(), strict=True):
            if end > start:
                self._file.madvise(mmap.MADV_WILLNEED, start, end - start)

    def _image(self, content: NDArray[np.uint8]) -> "Image.Image":
        from PIL import Image

        return Image.fromarray(content.reshape(3, self.size, self.size).transpose(1, 2, 0))

    def _fault(self, count: int) -> str:
        if fault := super()._fault(count):
            return fault
        fits = np.isin(np.diff(self._offsets), (0, 3 * self.size**2)).all()
        return "" if fits else f"{OFFSETS} is not of {self.size} x {self.size} pixels"


class JpegPack(Packed):
    """Form ``jpeg``: each whole image as a JPEG file whose shorter side is at most ``size`` pixels."""

    form = "jpeg"

    def _image(self, content: NDArray[np.uint8]) -> "Image.Image":
        return decode_image(content.tobytes())


FORMS: dict[str, type[RawPack | JpegPack]] = {pack.form: pack for pack in (RawPack, JpegPack)}


def read_header(folder: Path) -> dict[str, Any]:
    """The fields of ``pack.json``.

    Raises:
        MapetError: missing, damaged or of another version.
    """
    header = read_json(folder / HEADER, WHAT)
    known = header.get("format") == FORMAT and header.get("form") in FORMS and not FIELDS - header.keys()
    if not (known and is_intact(header)):
        raise MapetError(f"{folder / HEADER} is damaged or of another version: pack again.")
    return header


def packed_splits(root: Path) -> list[str]:
    """Which of "" (``root`` itself), "train" and the held-out names are packed folders."""
    return [part for part in ("", "train", *HELD_OUT_NAMES) if (root / part / HEADER).is_file()]


def open_pack(folder: Path) -> RawPack | JpegPack:
    """Open a packed folder.

    Raises:
        MapetError: missing, incomplete, damaged or of another version.
    """
    return FORMS[read_header(folder)["form"]](folder)


def packed_count(folder: Path) -> int:
    """Number of images that an incomplete pack has so far.

    Raises:
        MapetError: ``offsets.npy`` is damaged.
    """
    try:
        offsets = array(folder / OFFSETS)
        known = offsets >= 0
        count = (len(known) if known.all() else int(known.argmin())) - 1
        ascending = count >= 0 and offsets[0] == 0 and (np.diff(offsets[: count + 1]) >= 0).all()
    except (OSError, TypeError, ValueError) as error:
        raise damaged(folder, error) from error
    if not ascending:
        raise damaged(folder, f"{OFFSETS} does not ascend from 0")
    return count


def _incomplete_text(folder: Path, header: dict[str, Any]) -> str:
    done = f"{packed_count(folder):,} of {header['count']:,} images"
    return f"{folder} is an incomplete pack ({done}): complete it with {header['command']}"
