"""``mapet pack``: every image decoded once, into a folder that loads fast."""

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.utils.log import say

if TYPE_CHECKING:
    from mapet.data.dataset import ImageDataset
    from mapet.data.packing import Packing


@dataclass(frozen=True)
class Options:
    """Options of ``mapet pack DATA``."""

    data: str = ""
    """A folder of images, nested in any way, or cifar10; the same as DATA. All of its splits are packed."""
    out: str = ""
    """Folder for the pack; a started one is continued."""
    form: str = "uint8"
    """uint8 (pixels of one view) or jpeg (whole images)."""
    size: int = 224
    """Side of the view, or the longest that a JPEG's shorter side may be, in pixels."""
    quality: int | None = None
    """Of the JPEGs, 1 to 100; None: 95."""
    max_images: int | None = None
    """Pack only so many images of each split, chosen at random; None: all."""
    seed: int = 0
    """Of the choice by --max-images."""
    workers: int | None = None
    """Processes that decode images; None: one for each core."""
    max_bad_fraction: float = 0.01
    """Largest share of images that may be unreadable."""


def again(data: str, o: Options) -> str:
    """The command that goes on with a pack."""
    words = ["mapet", "pack", absolute(data), "--out", absolute(o.out)]
    for one in fields(o):
        if one.name not in ("data", "out") and (value := getattr(o, one.name)) != one.default:
            words += [f"--{one.name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def absolute(path: str) -> str:
    """A folder by its absolute path, so that the command works from anywhere; cifar10 as it is."""
    return path if path == "cifar10" else str(Path(path).expanduser().absolute())


def pack(
    data: str,
    out: str | Path,
    packing: "Packing | None" = None,
    *,
    max_images: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    max_bad_fraction: float = 0.01,
    say: Callable[[str], None] = say,
) -> None:
    """Pack ``data`` into the folder ``out``, or continue there; splits, where there are any, into train and test below.

    Args:
        data: as ``open_dataset`` takes it.
        out: new, empty, or what an interrupted call left.
        packing: what is kept of each image.
        max_images: only so many images of each split, drawn by ``seed``.
        seed: of that choice.
        workers: processes that decode; None: one for each core.
        max_bad: largest share of images that may be unreadable; they are listed in ``unreadable-images.txt``.
        say: is told each line for the screen.

    Raises:
        MapetError: no images, another pack or other files in ``out``, a disk that is too small, too many bad
            images, or another process that packs there.
    """
    from mapet.data.dataset import SPLITS, has_held_out, open_dataset
    from mapet.data.packing import Packing, begin
    from mapet.utils.io import require_free
    from mapet.utils.lock import Lock

    packing, out, workers = packing or Packing(), Path(absolute(str(out))), _workers() if workers is None else workers
    o = Options(
        out=str(out), form=packing.form, size=packing.size, quality=packing.quality, max_images=max_images, seed=seed
    )
    parts = (
        {out / split: open_dataset(data, split) for split in SPLITS}
        if has_held_out(data)
        else {out: open_dataset(data)}
    )
    if out not in parts:  # else the packing itself looks
        require_free(out, [folder.name for folder in parts])
    chosen = {folder: _chosen(source, max_images, seed) for folder, source in parts.items()}
    with Lock(out, "packing into"):
        for folder, source in parts.items():
            begin(folder, chosen[folder], packing, {"source": source.name, "command": again(data, o)})
        for folder, source in chosen.items():
            _pack(folder, source, packing, workers, max_bad_fraction, say)
    say(f"packed    use it as --data {shlex.quote(str(out))}")


def _pack(
    folder: Path,
    source: "ImageDataset",
    packing: "Packing",
    workers: int,
    max_bad_fraction: float,
    say: Callable[[str], None],
) -> None:
    """One folder, with its progress on the screen."""
    from mapet.data.packed import BAD, IMAGES
    from mapet.data.packing import pack as packed
    from mapet.data.unreadable import listed
    from mapet.engine.progress import Meter, clock

    counts, began = (
        packed(folder, source, packing, workers=workers, max_bad_fraction=max_bad_fraction),
        time.monotonic(),
    )
    first = done = next(counts)
    with Meter("pack", len(source), first) as meter:
        for done in counts:
            if meter.due(done):
                meter.update(done, f"{(done - first) / (time.monotonic() - began):,.0f} images/s")
    if done > first:
        seconds = time.monotonic() - began
        say(f"images  {done - first:,} in {clock(seconds)}, {(done - first) / seconds:,.0f} images/s")
    unreadable, size = len(listed(folder / BAD)), (folder / IMAGES).stat().st_size / 2**20
    told = f", {unreadable:,} of them unreadable ({folder / BAD})" if unreadable else ""
    say(f"{packing.form:<9} {done:,} images of {source.name}{told}: {size:,.1f} MiB in {folder}")


def _chosen(source: "ImageDataset", max_images: int | None, seed: int) -> "ImageDataset":
    """All images of the source, or some, without an object for each."""
    from array import array

    from mapet.build.batches import chosen
    from mapet.data.dataset import Subset

    if max_images is None or max_images >= len(source):
        return source
    return Subset(source, array("q", chosen(source, max_images, seed).numpy().tobytes()), "chosen")


def _workers() -> int:
    """Worker processes for the cores that this process may use; of one, none."""
    from mapet.engine.distributed import cores

    count = cores()
    return count if count > 1 else 0
