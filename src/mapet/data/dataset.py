"""A source: numbered images with stable keys and, where there are any, labels."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mapet.data.cifar import Cifar10
from mapet.data.folder import agreeing, held_out_names, no_held_out, open_folder
from mapet.data.packed import open_pack, packed_splits
from mapet.utils.errors import MapetError, nearest

if TYPE_CHECKING:
    from PIL import Image

SPLITS = ("train", "test")
NAMED = ("cifar10",)


class ImageDataset(Protocol):
    """What every kind of image collection offers."""

    @property
    def name(self) -> str:
        """For messages and provenance: "folder /abs/path", "cifar10 train"."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by label; empty when unlabelled."""

    def __len__(self) -> int:
        """How many images there are."""

    def image_id(self, i: int) -> str:
        """The stable, unique name of image ``i``."""

    def label(self, i: int) -> int:
        """The place of its class in ``classes``; -1 when unlabelled."""

    def read(self, i: int) -> "Image.Image":
        """The image, mode RGB; raises ``UnreadableImage`` with the reason."""


def open_dataset(data: str, split: str = "train") -> ImageDataset:
    """Open "cifar10" (which may fetch it), a folder of images or a packed one; one named cifar10 is "./cifar10".

    ``split`` is "train" or "test"; ``mapet.data.folder.open_folder`` says what they are for a folder; packed folders
    in the place of its sub-folders are its splits too.

    Raises:
        MapetError: nothing there, no images there, half packed or damaged, or no such split.
    """
    if split not in SPLITS:
        raise MapetError(f'There is no split "{split}".{nearest(split, SPLITS)}')
    if data == "cifar10":
        return Cifar10(split)
    root = Path(data).expanduser()
    if os.path.isdir(root):
        packs = packed_splits(root)
        return _open_packed(root, packs, split) if packs else open_folder(root, split)
    if os.path.exists(root):
        raise MapetError(f"{root} is a file: give the folder that holds the images.")
    raise MapetError(_not_there(data, Path(os.path.abspath(root))))


def _open_packed(root: Path, packs: list[str], split: str) -> ImageDataset:
    """The packed folder that is ``split``: of ``packs``, those below ``root``."""
    if "" in packs:
        if split != "train":
            raise MapetError(no_held_out(root))
        return open_pack(root)
    first = open_pack(root / packs[0])  # "train", where it is there
    if packs[0] != "train" or len(packs) == 1:
        raise MapetError(
            f"{root} holds the packed folder {packs[0]}, but {'train' if packs[0] != 'train' else 'a held-out part'} "
            f"is not packed beside it: pack it too, or give --data {root / packs[0]}."
        )
    return first if split == "train" else agreeing(first, [open_pack(root / part) for part in packs[1:]])


@dataclass(frozen=True)
class Subset:
    """Some images of a source, in the order of ``indices``; keys and labels stay."""

    source: ImageDataset
    indices: Sequence[int]
    part: str = "part"

    @property
    def name(self) -> str:
        """The source's name and which part of it this is."""
        return f"{self.source.name} ({self.part}, {len(self)} of {len(self.source)})"

    @property
    def classes(self) -> tuple[str, ...]:
        """The whole source's classes."""
        return self.source.classes

    def __len__(self) -> int:
        return len(self.indices)

    def image_id(self, i: int) -> str:
        """The key that the whole source gives."""
        return self.source.image_id(self.indices[i])

    def label(self, i: int) -> int:
        """The label that the whole source gives."""
        return self.source.label(self.indices[i])

    def read(self, i: int) -> "Image.Image":
        """The image, mode RGB; raises ``UnreadableImage``."""
        return self.source.read(self.indices[i])


def unwrapped(source: ImageDataset, indices: Sequence[int]) -> tuple[ImageDataset, Sequence[int]]:
    """The source below all subsets, and where the images at ``indices`` are in it."""
    while isinstance(source, Subset):
        indices = [source.indices[place] for place in indices]
        source = source.source
    return source, indices


def held_out(source: ImageDataset, share: float = 0.2, seed: int = 0) -> tuple[Subset, Subset]:
    """(rest, held-out part): each image's side hangs on its key and the seed alone, so adding images moves none.

    Raises:
        MapetError: a side would be empty.
    """
    sides: tuple[list[int], list[int]] = ([], [])
    for i in range(len(source)):
        sides[_fraction(source.image_id(i), seed) < share].append(i)
    if not all(sides):
        raise MapetError(
            f"Holding out {share:.0%} of the {len(source)} images of {source.name} leaves one side empty: "
            "add images or choose another share."
        )
    return Subset(source, sides[0], "rest"), Subset(source, sides[1], "held out")


def divided(data: str) -> bool:
    """Whether ``data`` has a held-out split of its own."""
    return data in NAMED or bool(held_out_names(Path(data).expanduser()))


def train_and_test(data: str, share: float = 0.2, seed: int = 0) -> tuple[ImageDataset, ImageDataset]:
    """Both splits of ``data``; where it has none, ``share`` of the images are held out.

    Raises:
        MapetError: as ``open_dataset`` and ``held_out``.
    """
    if divided(data):
        return open_dataset(data, "train"), open_dataset(data, "test")
    return held_out(open_dataset(data), share, seed)


def _fraction(key: str, seed: int) -> float:
    digest = blake2b(f"{seed}\n{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _not_there(data: str, path: Path) -> str:
    """Name the nearest folder beside the first part of ``path`` that does not exist."""
    while not os.path.isdir(path.parent):
        path = path.parent
    names = os.listdir(path.parent) if os.access(path.parent, os.R_OK) else []
    beside = [name for name in names if os.path.isdir(path.parent / name)]
    close = get_close_matches(path.name, beside, n=1, cutoff=0.5)
    return f'There is no folder "{data}" ({path} does not exist).{nearest(path.name, [*close, *NAMED])}'
