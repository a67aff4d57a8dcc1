"""Images that were decoded once by ``mapet pack``: a source that loads fast.

A folder of

    pack.json         what was packed and how; ``complete`` once everything below is there
    pictures.bin      the images, one after another
    offsets.npy       (N + 1,) int64: image i lies in the bytes offsets[i] … offsets[i + 1]; -1: not packed yet
    keys.txt          the keys that the original source gives, one a line
    labels.npy        (N,) int64, -1 for none
    unreadable-images.txt  the unreadable images, where there are any, each with its reason

Images keep their keys, their labels and their places: an unreadable one takes no bytes and is unreadable here too. So
a training stream over a pack has the same images in each step as one over the original source, and tokens, which are
found by key, serve both.

A ``uint8`` pack shows bit for bit what the original shows by the pack's view, so it goes by the original's name: a
token store that was begun with the one may be continued with the other. A ``jpeg`` pack is resized and compressed and
shows *almost* what the original shows. It has a name of its own: tokens of the original may be trained on with it,
which ``mapet pretrain`` notes on the screen, but the two cannot be mixed in one store.

At opening the files' sizes are checked against one another, their contents are not.
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
from mapet.data.packed_strings import LinesOf
from mapet.data.unreadable import listed
from mapet.utils.errors import MapetError
from mapet.utils.io import read_json
from mapet.utils.view import CenterCropResize

if TYPE_CHECKING:
    from PIL import Image

FORMAT = "mapet pack 1"
WHAT = "a packed folder"
HEADER, IMAGES, OFFSETS = "pack.json", "pictures.bin", "offsets.npy"
KEYS, LABELS, BAD = "keys.txt", "labels.npy", "unreadable-images.txt"
FIELDS = {"form", "size", "interpolation", "source", "classes", "count", "complete", "command"}


class Packed:
    """A source over a packed folder; ``RawPack`` and ``JpegPack`` say what an image is.

    Attributes:
        folder: where it lies.
        original: the name of the source that was packed.
        classes: that source's.

    Raises:
        MapetError: half packed, damaged or of another version.
    """

    form: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        header = read_header(folder)
        if not header["complete"]:
            raise MapetError(_half_packed(folder, header))
        self.folder, self.original = folder, str(header["source"])
        try:
            self.classes: tuple[str, ...] = tuple(header["classes"])
            self.size, self.view = (
                int(header["size"]),
                CenterCropResize((header["size"], header["size"]), header["interpolation"]),
            )
            self._offsets, self._labels = (np.load(folder / name, mmap_mode="r") for name in (OFFSETS, LABELS))
            self._keys = LinesOf(folder / KEYS)
            self._file = _mapped(folder / IMAGES)
            self._bytes = np.frombuffer(self._file, np.uint8)
        except (OSError, TypeError, ValueError, EOFError) as error:
            raise MapetError(f"{folder} is damaged ({error}): delete it and pack again, or restore it.") from error
        if wrong := self._wrong(header["count"]):
            raise MapetError(f"{folder} is damaged ({wrong}): delete it and pack again, or restore it.")

    def __reduce__(self) -> tuple[type["Packed"], tuple[Path]]:
        """A worker process maps the files itself."""
        return type(self), (self.folder,)

    @property
    def name(self) -> str:
        """The pack's own name."""
        return f"{self.form} pack {self.folder} of {self.original}"

    def __len__(self) -> int:
        return len(self._labels)

    def image_id(self, i: int) -> str:
        """The original source's key."""
        return self._keys[i]

    def label(self, i: int) -> int:
        """The original source's label."""
        return int(self._labels[i])

    def read(self, i: int) -> "Image.Image":
        """The image, mode RGB; raises ``UnreadableImage`` where the original's could not be read."""
        start, end = self._offsets[i], self._offsets[i + 1]
        if start == end:
            raise UnreadableImage(self.reason(i))
        return self._image(self._bytes[start:end])

    def reason(self, i: int) -> str:
        """Why image ``i``, which takes no bytes, cannot be read."""
        return self._reasons.get(self.image_id(i), "could not be read when it was packed")

    @cached_property
    def _reasons(self) -> dict[str, str]:
        return listed(self.folder / BAD)

    def _image(self, content: NDArray[np.uint8]) -> "Image.Image":
        raise NotImplementedError

    def _wrong(self, count: int) -> str:
        """What does not fit together; empty where all does."""
        if not len(self._keys) == len(self._labels) == len(self._offsets) - 1 == count:
            return f"{KEYS}, {LABELS} and {OFFSETS} are not of {count:,} images"
        if self._offsets[0] or (np.diff(self._offsets) < 0).any():
            return f"{OFFSETS} does not ascend from 0"
        if self._offsets[-1] != len(self._bytes):
            return f"{IMAGES} has {len(self._bytes):,} bytes, not {self._offsets[-1]:,}"
        return ""


class RawPack(Packed):
    """Form ``uint8``: each image as one view shows it, (3, size, size) uint8."""

    form = "uint8"

    @property
    def name(self) -> str:
        """That of the original source, whose images these are bit for bit."""
        return self.original

    def require(self, views: Sequence[CenterCropResize], whole: bool) -> None:
        """Refuse views other than the pack's own, and looks at a part of the images.

        Raises:
            MapetError: both sides and the ways out are named.
        """
        side = f"{self.size} x {self.size} pixels"
        for view in views:
            if view != self.view:
                raise MapetError(
                    f"{self.folder} is a uint8 pack of {side}, {self.view.interpolation}, and images of "
                    f"{view.size[0]} x {view.size[1]} pixels, {view.interpolation}, are asked for: give "
                    f"--image-size {self.size} or pack again with --size {view.size[0]} or --form jpeg; "
                    f"tokens that were made from {self.original} itself fit too."
                )
        if not whole:
            raise MapetError(
                f"{self.folder} is a uint8 pack of the central {side}, and random or smaller crops (--scale, "
                "--crop-pct) are asked for: leave them out (mapet finetune: --scale 1 1 --ratio 1 1), or pack again "
                "with --form jpeg."
            )

    def pixels(self, indices: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """(B, 3, size, size) of the readable images at ``indices`` (N,), copied; which these are, (N,)."""
        starts, ends = (self._offsets[np.asarray(indices, np.int64) + step] for step in (0, 1))
        good = ends > starts
        rows = self._bytes.reshape(-1, 3 * self.size**2).take(starts[good] // (3 * self.size**2), axis=0)
        return rows.reshape(-1, 3, self.size, self.size), good

    def expect(self, indices: Sequence[int]) -> None:
        """Let the system fetch the images at ``indices`` from the disk, all at once and while other work goes on."""
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

    def _wrong(self, count: int) -> str:
        sizes = np.diff(self._offsets)
        return super()._wrong(count) or (
            ""
            if np.isin(sizes, (0, 3 * self.size**2)).all()
            else f"{OFFSETS} is not of {self.size} x {self.size} pixels"
        )


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
    if header.get("format") != FORMAT or header.get("form") not in FORMS or FIELDS - header.keys():
        raise MapetError(f"{folder / HEADER} is damaged or of another version: pack again.")
    return header


def packed_splits(root: Path) -> list[str]:
    """Which of "" (``root`` itself), "train" and the names of held-out images are packed folders."""
    return [part for part in ("", "train", *HELD_OUT_NAMES) if (root / part / HEADER).is_file()]


def open_pack(folder: Path) -> RawPack | JpegPack:
    """The pack in ``folder``.

    Raises:
        MapetError: none there, half packed, damaged or of another version.
    """
    return FORMS[read_header(folder)["form"]](folder)


def packed_count(folder: Path) -> int:
    """How many images a begun pack has already."""
    known = np.load(folder / OFFSETS, mmap_mode="r") >= 0
    return (len(known) if known.all() else int(known.argmin())) - 1


def _half_packed(folder: Path, header: dict[str, Any]) -> str:
    done = f"{packed_count(folder):,} of {header['count']:,} images"
    return f"{folder} is half packed ({done}): go on with {header['command']}"


def _mapped(path: Path) -> mmap.mmap | bytes:
    """The bytes of a file; nothing is read before it is asked for."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
