"""Pack a dataset: decode every image once, into a folder that loads fast."""

import shlex
import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.api.images import absolute, absolute_paths
from mapet.config.flat import updated
from mapet.config.setting import flag
from mapet.config.verbs import PackSettings
from mapet.utils.log import log
from mapet.utils.owned import require_apart

if TYPE_CHECKING:
    from mapet.data.dataset import ImageDataset
    from mapet.data.packing import Packing


def pack(
    data: "str | Path | ImageDataset", out: str | Path, *, settings: PackSettings | None = None, **changes: Any
) -> Path:
    """Pack a dataset into a folder, or continue an interrupted call there; splits go into sub-folders train and test.

    Images that cannot be read are listed in ``unreadable-images.txt``.

    Args:
        data: a folder of images, nested in any way, ``"cifar10"``, or any object with the methods of ``ImageDataset``.
        out: new, empty, or begun by an interrupted call.
        settings: the defaults, without any.
        changes: settings by name, for instance ``form="jpeg"``.

    Returns:
        The folder, which other functions take as ``data``.

    Raises:
        MapetError: settings that do not fit, no images, another pack or other files in ``out``, too little room on the
            disk, too many unreadable images, or another process that packs there.
    """
    from mapet.data.packing import Packing, begin
    from mapet.utils.io import require_free
    from mapet.utils.lock import Lock

    s = updated(settings or PackSettings(), **changes)
    packing = Packing(s.form, s.size, s.quality)
    out, parts, command = _opened(data, out, s)
    if out not in parts:  # otherwise begin checks the folder
        require_free(out, [folder.name for folder in parts])
    chosen = {folder: _chosen(source, s) for folder, source in parts.items()}
    with Lock(out, "packing into"):
        for folder, source in parts.items():
            begin(folder, chosen[folder], packing, {"source": source.name, "command": command})
        for folder, source in chosen.items():
            _pack(folder, source, packing, s)
    return out


def _opened(
    data: "str | Path | ImageDataset", out: str | Path, s: PackSettings
) -> tuple[Path, "dict[Path, ImageDataset]", str]:
    """The absolute folder, the datasets by the folders that hold them, and the command that continues the pack."""
    from mapet.data.dataset import SPLITS, has_held_out, open_dataset

    if not isinstance(data, str | Path):
        folder = absolute(out)
        return folder, {folder: data}, f"mapet.pack(DATASET, {str(folder)!r})"
    name, folder = absolute_paths("pack", data, out)
    require_apart(folder, data=name)
    if has_held_out(name):
        parts = {folder / split: open_dataset(name, split, s.max_pixels) for split in SPLITS}
    else:
        parts = {folder: open_dataset(name, max_pixels=s.max_pixels)}
    return folder, parts, pack_command(name, folder, s)


def pack_command(data: str | Path, out: str | Path, settings: PackSettings) -> str:
    """The command that continues a pack, from any folder."""
    data, out = absolute_paths("pack", data, out)
    words = ["mapet", "pack", data, "--out", str(out)]
    for one in fields(settings):
        if (value := getattr(settings, one.name)) != one.default:
            words += [flag(one), str(value)]
    return shlex.join(words)


def _pack(folder: Path, source: "ImageDataset", packing: "Packing", s: PackSettings) -> None:
    """Fill one folder, with progress."""
    from mapet.data.packed import BAD, IMAGES
    from mapet.data.packing import pack as packed
    from mapet.data.unreadable import listed
    from mapet.engine.progress import Meter, clock

    workers = _workers() if s.workers is None else s.workers
    counts = packed(folder, source, packing, workers=workers, max_bad_fraction=s.max_bad_fraction)
    began = time.monotonic()
    first = done = next(counts)
    with Meter("pack", len(source), first) as meter:
        for done in counts:
            if meter.due(done):
                meter.update(done, f"{(done - first) / (time.monotonic() - began):,.0f} images/s")
    if done > first:
        seconds = time.monotonic() - began
        log.info(f"images    {done - first:,} in {clock(seconds)}, {(done - first) / seconds:,.0f} images/s")
    unreadable, size = len(listed(folder / BAD)), (folder / IMAGES).stat().st_size / 2**20
    note = f", {unreadable:,} of them unreadable ({folder / BAD})" if unreadable else ""
    log.info(f"{packing.form:<9} {done:,} images of {source.name}{note}: {size:,.1f} MiB in {folder}")


def _chosen(source: "ImageDataset", s: PackSettings) -> "ImageDataset":
    """The whole dataset, or some of its images, without an object for each."""
    from array import array

    from mapet.build.batches import choose_indices
    from mapet.data.dataset import Subset

    if s.max_images is None or s.max_images >= len(source):
        return source
    return Subset(source, array("q", choose_indices(source, s.max_images, s.seed).numpy().tobytes()), "chosen")


def _workers() -> int:
    """One worker process for each core that this process may use; none for a single core."""
    from mapet.engine.distributed import cores

    count = cores()
    return count if count > 1 else 0
