"""Images in a folder and its sub-folders; labelled if the top level has one sub-folder per class."""

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

    Symbolic links are followed, except into a folder that contains them. The images are labelled if ``root/part`` has
    images in at least two sub-folders and none at the top level: ``classes`` are the sub-folders' names.

    Raises:
        MapetError: no images, or a folder that cannot be listed.
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
        """The path below the root, with "/"; unprintable characters are escaped, so that an id is one line."""
        path = self._paths[i]
        return path if path.isprintable() else "".join(map(_printable, path))

    def label(self, i: int) -> int:
        """The index of the image's class in ``classes``, or -1 without classes."""
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

    If ``root`` has sub-folders ``train`` and one of ``test``, ``val`` or ``validation``, these are the splits, and
    their names are part of the image ids; the held-out split is the first of the three with the classes of ``train``.
    Otherwise "train" is the whole folder.

    Raises:
        MapetError: a folder without splits has no "test", or no held-out split has the classes of ``train``.
    """
    held_out = held_out_names(root)
    if split == "train":
        return Folder(root, "train" if held_out else "")
    if not held_out:
        raise MapetError(no_held_out_text(root))
    return first_with_same_classes(Folder(root, "train"), [Folder(root, name) for name in held_out])


def held_out_names(root: Path) -> list[str]:
    """The sub-folders of held-out images; empty if there is no ``train``."""
    has_train = os.path.isdir(root / "train")
    return [name for name in HELD_OUT_NAMES if has_train and os.path.isdir(root / name)]


def no_held_out_text(root: Path) -> str:
    """The error text for a folder without a held-out split."""
    return (
        f"The folder {root} has no held-out split: put its images into sub-folders train and test, "
        "or hold out a share of them."
    )


class HasClasses(Protocol):
    """A dataset's name and classes."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by label."""


C = TypeVar("C", bound=HasClasses)


def first_with_same_classes(train: HasClasses, others: list[C]) -> C:
    """The first of ``others`` with the classes of ``train``.

    Raises:
        MapetError: there is none.
    """
    for other in others:
        if other.classes == train.classes:
            return other
    missing = sorted(set(train.classes) - set(others[0].classes))
    unknown = sorted(set(others[0].classes) - set(train.classes))
    raise MapetError(
        f"{others[0].name} and {train.name} have different classes: missing {_few(missing)}, "
        f"unknown {_few(unknown)}. Give both the same sub-folders."
    )


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "none"


def _images(folder: str, prefix: str, parents: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Paths of the images below ``folder``, each after ``prefix``; ``parents`` are (device, inode) of its parents."""
    try:
        status = os.stat(folder)
        entries = list(os.scandir(folder))
    except OSError as error:
        raise MapetError(
            f"The folder {folder} cannot be listed ({error.strerror}): fix its permissions or move it away."
        ) from error
    inside = parents | {(status.st_dev, status.st_ino)}
    if inside == parents:  # a link to a parent
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
