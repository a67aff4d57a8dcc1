"""Images in a folder, nested in any way; labelled where the top level is one sub-folder per class."""

import os
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from mapet.data.image import SUFFIXES, read_image
from mapet.data.packed_strings import PackedStrings
from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    from PIL import Image

HELD_OUT_NAMES = ("test", "val", "validation")


class Folder:
    """All images below ``root/part``, sorted by their path below ``root``; hidden files and folders are skipped.

    Symbolic links are followed, except back into a folder that holds them. The images are labelled when ``root/part``
    holds at least two sub-folders with images and none of its own: ``classes`` are then those sub-folders' names.

    Raises:
        MapetError: no images there, or a folder that cannot be listed.
    """

    def __init__(self, root: Path, part: str = "") -> None:
        self.root = Path(os.path.abspath(root))
        top = self.root / part
        self.name = f"folder {top}"
        prefix = f"{part}/" if part else ""
        self._paths = PackedStrings(sorted(_images(str(top), prefix, frozenset())))
        if not len(self._paths):
            endings = " ".join(SUFFIXES)
            raise MapetError(f"The folder {top} and its sub-folders hold no images (files ending in {endings}).")
        self._start = len(prefix)
        self.classes = self._find_classes()

    def __len__(self) -> int:
        return len(self._paths)

    def image_id(self, i: int) -> str:
        """The path below the root, with "/"; what cannot be printed in it is escaped, so that a key is one line."""
        path = self._paths[i]
        return path if path.isprintable() else "".join(map(_printable, path))

    def label(self, i: int) -> int:
        """The place of the image's class in ``classes``, or -1 without classes."""
        return bisect_left(self.classes, self._top(self._paths[i])) if self.classes else -1

    def read(self, i: int) -> "Image.Image":
        """The image in RGB; raises ``UnreadableImage``."""
        return read_image(self.root / self._paths[i])

    def _find_classes(self) -> tuple[str, ...]:
        tops = sorted({self._top(path) for path in self._paths})
        return tuple(tops) if len(tops) > 1 and "" not in tops else ()

    def _top(self, path: str) -> str:
        return path[self._start :].rpartition("/")[0].partition("/")[0]


def open_folder(root: Path, split: str) -> Folder:
    """A folder's "train" or "test" images.

    Where ``root`` holds ``train`` beside ``test``, ``val`` or ``validation``, those are the splits, and their names
    stay in the keys; the held-out split is the first of the three whose classes agree with those of ``train``.
    Elsewhere "train" is everything.

    Raises:
        MapetError: a folder without splits has no "test", or no held-out split has the classes of ``train``.
    """
    held_out = held_out_names(root)
    if split == "train":
        return Folder(root, "train" if held_out else "")
    if not held_out:
        raise MapetError(no_held_out(root))
    return agreeing(Folder(root, "train"), [Folder(root, name) for name in held_out])


def held_out_names(root: Path) -> list[str]:
    """The sub-folders beside ``train`` that hold held-out images; none where the folder is not divided so."""
    divided = os.path.isdir(root / "train")
    return [name for name in HELD_OUT_NAMES if divided and os.path.isdir(root / name)]


def no_held_out(root: Path) -> str:
    """What is said of a folder without splits that is asked for one."""
    return (
        f"The folder {root} has no held-out split: put its images into sub-folders train and test, "
        "or hold a share of them out."
    )


class Labelled(Protocol):
    """A source as far as its classes go."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by label."""


L = TypeVar("L", bound=Labelled)


def agreeing(train: Labelled, others: list[L]) -> L:
    """The first of ``others`` with the classes of ``train``.

    Raises:
        MapetError: there is none.
    """
    for other in others:
        if other.classes == train.classes:
            return other
    missing = sorted(set(train.classes) - set(others[0].classes))
    foreign = sorted(set(others[0].classes) - set(train.classes))
    raise MapetError(
        f"The classes of {others[0].name} are not those of {train.name}: missing {_few(missing)}, "
        f"unknown {_few(foreign)}. Give both the same sub-folders."
    )


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "none"


def _images(folder: str, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Paths of the images below ``folder``, each after ``prefix``; ``above`` identifies the folders that hold it."""
    try:
        status = os.stat(folder)
        entries = list(os.scandir(folder))
    except OSError as error:
        raise MapetError(
            f"The folder {folder} cannot be listed ({error.strerror}): mend its permissions or move it away."
        ) from error
    inside = above | {(status.st_dev, status.st_ino)}
    if inside == above:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
            yield from _images(entry.path, f"{prefix}{entry.name}/", inside)
        elif entry.name.lower().endswith(SUFFIXES):
            yield prefix + entry.name


def _printable(letter: str) -> str:
    return letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
