"""Datasets: indexed images with stable ids and, if there are classes, labels."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mapet.data.cifar import Cifar10
from mapet.data.folder import Folder, first_with_same_classes, held_out_names, no_held_out_text, open_folder
from mapet.data.image import MAX_PIXELS
from mapet.data.packed import open_pack, packed_splits
from mapet.utils.errors import MapetError, nearest

if TYPE_CHECKING:
    from PIL import Image

SPLITS = ("train", "test")
NAMED = ("cifar10",)


class ImageDataset(Protocol):
    """Interface of every dataset."""

    @property
    def name(self) -> str:
        """For messages and provenance: "folder /abs/path", "cifar10 train"."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by label; empty when unlabelled."""

    def __len__(self) -> int:
        """Number of images."""

    def image_id(self, i: int) -> str:
        """The stable, unique name of image ``i``."""

    def label(self, i: int) -> int:
        """The index of its class in ``classes``; -1 when unlabelled."""

    def read(self, i: int) -> "Image.Image":
        """The image, mode RGB; raises ``UnreadableImage`` with the reason."""


def open_dataset(
    data: str, split: str = "train", max_pixels: int = MAX_PIXELS, draft: int | None = None
) -> ImageDataset:
    """Open a dataset.

    Args:
        data: "cifar10" (downloaded if necessary), a folder of images, or a packed folder. A folder of the name cifar10
            is "./cifar10".
        split: "train" or "test", see ``open_folder``; packed folders may replace the sub-folders.
        max_pixels: larger images of a folder are unreadable.
        draft: of JPEG files in a folder, as in ``read_image``.

    Raises:
        MapetError: no such folder or split, no images, an incomplete or damaged pack, or ``draft`` without files.
    """
    if split not in SPLITS:
        raise MapetError(f'There is no split "{split}".{nearest(split, SPLITS)}')
    root, named = Path(data).expanduser(), data in NAMED
    packs = packed_splits(root) if not named and os.path.isdir(root) else []
    if draft and (named or packs):
        raise MapetError(f"--draft {draft} decodes JPEG files of a folder, and --data {data} has none: remove --draft.")
    if named:
        return Cifar10(split)
    if packs:
        return _open_packed(root, packs, split)
    if os.path.isdir(root):
        return open_folder(root, split, max_pixels, draft)
    if os.path.exists(root):
        raise MapetError(f"{root} is a file: give the folder that holds the images.")
    raise MapetError(_missing_text(data, Path(os.path.abspath(root))))


def _open_packed(root: Path, packs: list[str], split: str) -> ImageDataset:
    """The pack of ``split``, from the sub-folders ``packs`` of ``root``; "" is ``root`` itself."""
    if "" in packs:
        if split != "train":
            raise MapetError(no_held_out_text(root))
        return open_pack(root)
    first = open_pack(root / packs[0])  # "train", if it exists
    if packs[0] != "train" or len(packs) == 1:
        raise MapetError(
            f"{root} holds the packed folder {packs[0]}, but {'train' if packs[0] != 'train' else 'a held-out split'} "
            f"is not packed: pack it too, or give --data {root / packs[0]}."
        )
    return first if split == "train" else first_with_same_classes(first, [open_pack(root / part) for part in packs[1:]])


@dataclass(frozen=True)
class Subset:
    """The images of a dataset at ``indices``, in this order, with the same ids and labels."""

    source: ImageDataset
    indices: Sequence[int]
    part: str = "part"

    @property
    def name(self) -> str:
        """The dataset's name and the part."""
        return f"{self.source.name} ({self.part}, {len(self)} of {len(self.source)})"

    @property
    def classes(self) -> tuple[str, ...]:
        """The dataset's classes."""
        return self.source.classes

    def __len__(self) -> int:
        return len(self.indices)

    def image_id(self, i: int) -> str:
        """The dataset's image id."""
        return self.source.image_id(self.indices[i])

    def label(self, i: int) -> int:
        """The dataset's label."""
        return self.source.label(self.indices[i])

    def read(self, i: int) -> "Image.Image":
        """The image, mode RGB; raises ``UnreadableImage``."""
        return self.source.read(self.indices[i])


def base_dataset(source: ImageDataset, indices: Sequence[int]) -> tuple[ImageDataset, Sequence[int]]:
    """The dataset below all subsets, and the indices in it of the images at ``indices`` of ``source``."""
    while isinstance(source, Subset):
        indices = [source.indices[index] for index in indices]
        source = source.source
    return source, indices


def require_labels(train: ImageDataset, test: ImageDataset | None = None, option: str = "--data") -> None:
    """Require labels, and images in each class folder; a test split may lack a class.

    Raises:
        MapetError: names the folder, or the image that lies next to the class folders.
    """
    bases = [base_dataset(source, ())[0] for source in (train, test) if source is not None]
    if not train.classes:
        why = bases[0].stray() if isinstance(bases[0], Folder) else ""
        reason = f", {why}, or" if why else ":"
        raise MapetError(f"{train.name} has no labels{reason} give {option}, a folder with one sub-folder per class.")
    for split, base in enumerate(bases):
        if isinstance(base, Folder):
            base.require_filled(all_classes=split == 0)


def split_held_out(source: ImageDataset, share: float = 0.2, seed: int = 0) -> tuple[Subset, Subset]:
    """Split into (rest, held-out part) by a hash of (seed, image id), so adding images moves no other image.

    Raises:
        MapetError: a part would be empty.
    """
    parts: tuple[list[int], list[int]] = ([], [])
    for i in range(len(source)):
        parts[_fraction(source.image_id(i), seed) < share].append(i)
    if not all(parts):
        raise MapetError(
            f"Holding out {share:.0%} of the {len(source)} images of {source.name} leaves a part empty: "
            "add images or choose another share."
        )
    return Subset(source, parts[0], "rest"), Subset(source, parts[1], "held out")


def has_held_out(data: str) -> bool:
    """Whether ``data`` comes with a held-out split."""
    return data in NAMED or bool(held_out_names(Path(data).expanduser()))


def train_and_test(
    data: str, share: float = 0.2, seed: int = 0, max_pixels: int = MAX_PIXELS
) -> tuple[ImageDataset, ImageDataset]:
    """Both splits of ``data``; if it has no held-out split, ``share`` of the images are held out.

    Raises:
        MapetError: as ``open_dataset`` and ``split_held_out``.
    """
    if has_held_out(data):
        return open_dataset(data, "train", max_pixels), open_dataset(data, "test", max_pixels)
    return split_held_out(open_dataset(data, max_pixels=max_pixels), share, seed)


def _fraction(image_id: str, seed: int) -> float:
    digest = blake2b(f"{seed}\n{image_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _missing_text(data: str, path: Path) -> str:
    """An error text that suggests a name for the first component of ``path`` that does not exist."""
    while not os.path.isdir(path.parent):
        path = path.parent
    names = os.listdir(path.parent) if os.access(path.parent, os.R_OK) else []
    folders = [name for name in names if os.path.isdir(path.parent / name)]
    close = get_close_matches(path.name, folders, n=1, cutoff=0.5)
    return f'There is no folder "{data}" ({path} does not exist).{nearest(path.name, [*close, *NAMED])}'
