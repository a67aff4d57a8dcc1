"""The writing of packed folders: any source's images, once, into one file; ``packed`` tells the format.

What belongs to each image but its pixels is written first, the header last of that; from then on ``offsets.npy`` says
how many images are there: theirs are on the disk before it counts them. So a kill at any moment leaves a folder that
``pack`` goes on with, to the same bytes as without it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from shutil import disk_usage
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from mapet.data.dataset import ImageDataset
from mapet.data.decode import Faults, Group, decode, loaded, noted, require_shown
from mapet.data.image import UnreadableImage
from mapet.data.packed import (
    BAD,
    FORMAT,
    FORMS,
    HEADER,
    IMAGES,
    KEYS,
    LABELS,
    OFFSETS,
    JpegPack,
    RawPack,
    packed_count,
    read_header,
)
from mapet.data.unreadable import UnreadableImages
from mapet.utils.errors import MapetError, nearest
from mapet.utils.io import encoded, replace_file, require_free, write_from
from mapet.utils.view import CenterCropResize

if TYPE_CHECKING:
    from PIL import Image

AT_ONCE = 64  # images decoded together, and on the disk together
MOST = 4096  # pixels of a side
QUALITY = 95


@dataclass(frozen=True)
class Packing:
    """What is kept of each image.

    Attributes:
        form: "uint8" (the view's pixels) or "jpeg" (the whole image as a JPEG).
        size: side of the view, or the longest shorter side of a JPEG, in pixels.
        quality: of the JPEGs, 1 … 100; None: 95, and for uint8.

    Raises:
        MapetError: another form, or a number out of range.
    """

    form: str = RawPack.form
    size: int = 224
    quality: int | None = None

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise MapetError(f'There is no form "{self.form}".{nearest(self.form, FORMS)}')
        is_jpeg = self.form == JpegPack.form
        for option, fits, wanted in (
            ("size", 1 <= self.size <= MOST, f"1 … {MOST} pixels"),
            ("quality", is_jpeg or self.quality is None, "left out: it is for --form jpeg"),
            ("quality", 1 <= self.jpeg_quality <= 100, "1 … 100"),
        ):
            if not fits:
                raise MapetError(f"--{option} does not fit: it must be {wanted}.")

    @property
    def jpeg_quality(self) -> int:
        """The quality where JPEGs are written."""
        return QUALITY if self.quality is None else self.quality

    @property
    def view(self) -> CenterCropResize:
        """The view of a uint8 pack; its interpolation is that of the JPEGs too."""
        return CenterCropResize((self.size, self.size))

    @property
    def row(self) -> int:
        """Bytes of an image in a uint8 pack."""
        return 3 * self.size**2

    def jpeg(self, image: "Image.Image") -> bytes:
        """The whole image as a JPEG, shrunk until its shorter side is ``size``, never enlarged.

        Raises:
            BadPicture: a side longer than JPEG allows.
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
    """Write what belongs to the images but their pixels, or see that the pack begun in ``folder`` is the same.

    Args:
        folder: new, empty, or a pack begun with the same arguments.
        source: of the images.
        packing: what is kept of them.
        about: ``source``, the original's name; ``command``, which goes on; and what else the header shall hold.

    Raises:
        MapetError: a folder with other content, a pack of other images or settings, or a disk that is too small.
    """
    require_shown(source, [packing.view] if packing.form == RawPack.form else [])
    header = _header(source, packing, about)
    if (folder / HEADER).is_file():
        _require_same(folder, header)
        return
    require_free(folder, (KEYS, LABELS, OFFSETS, f"{HEADER}.part"))
    folder.mkdir(parents=True, exist_ok=True)
    _require_room(folder, packing, len(source))
    with (folder / KEYS).open("wb") as file:
        file.writelines(encoded(source.image_id(i)) + b"\n" for i in range(len(source)))
    np.save(folder / LABELS, _labels(source))
    np.save(folder / OFFSETS, np.concatenate([[0], np.full(len(source), -1)]))
    replace_file(folder / HEADER, json.dumps(header, indent=1) + "\n")


def pack(
    folder: Path, source: ImageDataset, packing: Packing, *, workers: int = 0, max_bad_fraction: float = 0.01
) -> Iterator[int]:
    """Pack what is missing in a begun folder, and yield how many images are done, at first and after each group.

    By one process at a time: who calls this sees to that.

    Raises:
        MapetError: too many bad images, or a damaged folder.
    """
    done, header = packed_count(folder), read_header(folder)
    yield done
    if header["complete"]:
        return
    offsets = np.load(folder / OFFSETS, mmap_mode="r+")
    _require_pixels(folder, int(offsets[done]))
    bad = UnreadableImages(len(source), max_bad_fraction, folder / BAD)
    groups = (_raw if packing.form == RawPack.form else _jpegs)(source, packing, done, workers, bad)
    for sizes, content in groups:
        write_from(folder / IMAGES, int(offsets[done]), content)
        offsets[done + 1 : done + 1 + len(sizes)] = offsets[done] + np.cumsum(sizes)
        offsets.flush()
        done += len(sizes)
        yield done
    replace_file(folder / HEADER, json.dumps({**header, "complete": True}, indent=1) + "\n")


def _require_pixels(folder: Path, size: int) -> None:
    path = folder / IMAGES
    if size > (path.stat().st_size if path.exists() else 0):
        raise MapetError(f"{path} is shorter than it was: delete {folder} and pack again.")


Encoded = Iterator[tuple[NDArray[np.int64], bytes]]  # bytes of each image of a group, 0 for a bad one; all of them


def _raw(source: ImageDataset, packing: Packing, first: int, workers: int, bad: UnreadableImages) -> Encoded:
    batches = decode(source, [packing.view], _groups(first, len(source)), workers=workers, bad=bad)
    for (_, indices), batch in zip(_groups(first, len(source)), batches, strict=True):
        yield np.isin(indices, batch.index) * packing.row, batch.images.numpy().tobytes()


def _jpegs(source: ImageDataset, packing: Packing, first: int, workers: int, bad: UnreadableImages) -> Encoded:
    for files in noted(loaded(_Jpegs(source, packing), _groups(first, len(source)), workers), source, bad):
        yield np.array([len(file) for file in files]), b"".join(files)


class _Jpegs(Dataset[tuple[list[bytes], Faults]]):
    """Reads and compresses one group of images per item; a bad one is no bytes."""

    def __init__(self, source: ImageDataset, packing: Packing) -> None:
        self.source, self.packing = source, packing

    def __getitem__(self, group: Group) -> tuple[list[bytes], Faults]:
        files, faults = [], []
        for place in group[1]:
            try:
                files.append(self.packing.jpeg(self.source.read(place)))
            except UnreadableImage as reason:
                files.append(b"")
                faults.append((place, str(reason)))
        return files, faults


def _groups(first: int, count: int) -> Iterator[Group]:
    return ((0, range(start, min(start + AT_ONCE, count))) for start in range(first, count, AT_ONCE))


def _header(source: ImageDataset, packing: Packing, about: dict[str, Any]) -> dict[str, Any]:
    quality = packing.jpeg_quality if packing.form == JpegPack.form else None
    header = {"format": FORMAT, "form": packing.form, "size": packing.size, "quality": quality}
    header |= {"interpolation": packing.view.interpolation, "count": len(source), "classes": list(source.classes)}
    return {**header, "keys": _digest(source), **about, "complete": False}


def _digest(source: ImageDataset) -> str:
    """BLAKE2b of all labels and keys."""
    digest = blake2b(digest_size=16)
    for i in range(len(source)):
        digest.update(b"%d %b\n" % (source.label(i), encoded(source.image_id(i))))
    return digest.hexdigest()


def _labels(source: ImageDataset) -> NDArray[np.int64]:
    return np.fromiter((source.label(i) for i in range(len(source))), np.int64, len(source))


def _require_same(folder: Path, wanted: dict[str, Any]) -> None:
    found = read_header(folder)
    for name in [name for name in wanted if name not in ("command", "complete")]:
        was, asked = found.get(name), wanted[name]
        if was != asked:
            told = "other images or labels" if name in ("keys", "classes") else f"{name} {was}, and not {asked}"
            raise MapetError(f"{folder} was packed with {told}: give another --out, or delete it and pack again.")


def _require_room(folder: Path, packing: Packing, count: int) -> None:
    needed, free = count * packing.row, disk_usage(folder).free
    if packing.form == RawPack.form and needed > free:
        raise MapetError(
            f"{count:,} images of {packing.size} x {packing.size} pixels take {needed / 2**30:,.1f} GiB as uint8, "
            f"and {folder} has {free / 2**30:,.1f} GiB left: give --form jpeg, a smaller --size or another disk."
        )
