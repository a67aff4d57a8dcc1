"""Images in a folder and its sub-folders; labelled if the top level has one sub-folder per class."""

import os
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from mapet.data.image import MAX_PIXELS, SUFFIXES, deep_range, read_file, read_image
from mapet.data.listing import Listing
from mapet.data.packed_strings import PackedStrings
from mapet.utils.errors import MapetError
from mapet.utils.log import log

if TYPE_CHECKING:
    from PIL import Image

SHALLOW = (".jpg", ".jpeg", ".webp", ".gif", ".bmp")  # hold 8 bits
SAMPLE = 20  # images whose range of values is checked
HELD_OUT_NAMES = ("test", "val", "validation")


class Folder:
    """All images below ``root/part`` as ``Listing`` finds them, sorted by their path below ``root``.

    Symbolic links are followed, except into a folder that contains them. The images are labelled if ``root/part`` has
    images in at least two sub-folders and none at the top level: ``classes`` are the sub-folders' names (``by_label``),
    with unprintable characters escaped. Other files are left alone, which ``note`` says.

    Raises:
        MapetError: no images, or a folder that cannot be listed.
    """

    def __init__(self, root: Path, part: str = "", max_pixels: int = MAX_PIXELS, draft: int | None = None) -> None:
        self.max_pixels, self.draft = max_pixels, draft
        self.root = Path(os.path.abspath(root))
        top = self.root / part
        self.name = f"folder {top}"
        prefix = f"{part}/" if part else ""
        self._files = Listing(str(top), prefix)
        paths, self._files.images = self._files.images, []
        paths.sort()
        if not paths:
            left = f"; {self._files.left_alone()}" if self._files.left else ""
            raise MapetError(
                f"The folder {top} and its sub-folders hold no images (files ending in {' '.join(SUFFIXES)} and others "
                f"that Pillow decodes){left}: give another folder, or convert the files to JPEG or PNG."
            )
        self._start = len(prefix)
        self.tops = tuple(sorted({self._top(path) for path in paths}))
        self._paths = PackedStrings(paths)
        self.by_label = self.tops if len(self.tops) > 1 and "" not in self.tops else ()
        self.classes = tuple(map(printable, self.by_label))

    def __len__(self) -> int:
        return len(self._paths)

    def image_id(self, i: int) -> str:
        """The path below the root, with "/"; unprintable characters are escaped, so that an id is one line."""
        return printable(self._paths[i])

    def label(self, i: int) -> int:
        """The index of the image's class in ``classes``, or -1 without classes."""
        return bisect_left(self.by_label, self._top(self._paths[i])) if self.by_label else -1

    def read(self, i: int) -> "Image.Image":
        """The image in RGB; raises ``UnreadableImage``."""
        return read_image(self.file(i), self.max_pixels, self.draft)

    def file(self, i: int) -> Path:
        """The image file."""
        return self.root / self._paths[i]

    def content(self, i: int) -> tuple[str, bytes]:
        """The bytes of the image file, and what they are."""
        return "file", read_file(self.file(i))

    def note(self) -> str:
        """Which files are left alone, and which sub-folders hold no image; empty if there are none."""
        empty = [child for child in self._empty() if child not in self.by_label]
        folders = f"no image in the sub-folder {_few(empty)}" if empty else ""
        return "; ".join(filter(None, [self._files.left_alone(), folders]))

    def stray(self) -> str:
        """Why there are no labels, if images next to the sub-folders are the reason; empty otherwise."""
        loose = [path[self._start :] for path in self._paths if not self._top(path)] if len(self.tops) > 1 else []
        if not loose:
            return ""
        return f"as {_few(loose)} {'lies' if len(loose) == 1 else 'lie'} next to its sub-folders: move that away"

    def depth_note(self) -> str:
        """Whether images of more than 8 bits use less than a tenth of their range, by a sample; empty if not."""
        sample = [self._paths[i] for i in range(0, len(self), -(-len(self) // SAMPLE))]
        sample = [path for path in sample if not path.lower().endswith(SHALLOW)]
        found = [(*values, path) for path in sample if (values := deep_range(self.root / path, self.max_pixels))]
        if not found or any(high >= end / 10 for high, end, _ in found):
            return ""
        high, end, path = max(found)
        return (
            f"images of more than 8 bits use few of their values, in a sample of {len(found)} at most {high:g} of "
            f"0 … {end:g} ({path}), so most grey levels are lost: scale them to the whole range first"
        )

    def require_filled(self, *, all_classes: bool) -> None:
        """Require an image in each class folder that holds other files, or with ``all_classes`` in each.

        Raises:
            MapetError: names the folder and the files in it.
        """
        for child in self._empty() if self.classes else []:
            if all_classes or child in self._files.left:
                left = self._files.left_alone(child) or "it is empty"
                raise MapetError(
                    f"{self.name} has no usable image in its class folder {child} ({left}): convert the files to JPEG "
                    "or PNG, add images, or move that folder away."
                )

    def _empty(self) -> list[str]:
        return [child for child in self._files.folders if child not in self.tops]

    def _top(self, path: str) -> str:
        return path[self._start :].rpartition("/")[0].partition("/")[0]


def open_folder(root: Path, split: str, max_pixels: int = MAX_PIXELS, draft: int | None = None) -> Folder:
    """A folder's "train" or "test" images.

    If ``root`` has sub-folders ``train`` and one of ``test``, ``val`` or ``validation``, these are the splits, and
    their names are part of the image ids; the held-out split is the first of the three with the classes of ``train``,
    otherwise the first with some of them. Otherwise "train" is the whole folder. Files left alone are logged once.

    Raises:
        MapetError: a folder without splits has no "test", or no held-out split has classes of ``train`` only.
    """
    known, key = _known.get(), (os.path.abspath(root), split, max_pixels, draft)
    if known is None:
        return _open(root, split, max_pixels, draft)
    if key not in known:
        known[key] = _open(root, split, max_pixels, draft)
    return known[key]


@contextmanager
def listed_once() -> Iterator[None]:
    """A block in which each folder is listed when it is first opened, and not again."""
    token = _known.set({})
    try:
        yield
    finally:
        _known.reset(token)


_known: ContextVar[dict[tuple[str, str, int, int | None], Folder] | None] = ContextVar("known", default=None)


def _open(root: Path, split: str, max_pixels: int, draft: int | None) -> Folder:
    held_out = held_out_names(root)
    if split == "train":
        return _noted(Folder(root, "train" if held_out else "", max_pixels, draft))
    if not held_out:
        raise MapetError(no_held_out_text(root))
    others = [Folder(root, name, max_pixels, draft) for name in held_out]
    return _noted(_held_out(Folder(root, "train"), others))


def open_all(root: Path, max_pixels: int = MAX_PIXELS) -> Folder:
    """All images of a folder, whatever its splits; files left alone are logged once.

    Raises:
        MapetError: no images.
    """
    return _noted(Folder(root, max_pixels=max_pixels))


def _held_out(train: Folder, others: list[Folder]) -> Folder:
    """The first of ``others`` with the classes of ``train``, or with some of them: it gets the labels of all."""
    if any(other.classes == train.classes for other in others):
        return first_with_same_classes(train, others)
    for other in others:
        if train.classes and set(other.tops) <= set(train.by_label):
            missing = [name for name in train.by_label if name not in other.tops]
            _log_once(f"{other.name} has no images of {_few(missing)}: scores are over the images of the other classes")
            other.classes, other.by_label = train.classes, train.by_label
            return other
    for folder in (train, *others):
        if why := folder.stray():
            raise MapetError(f"{folder.name} has no labels, {why}.")
    return first_with_same_classes(train, others)


def _noted(folder: Folder) -> Folder:
    """The folder, after its notes are logged; its values are checked once per process."""
    notes = [folder.note()] if folder.name in _checked else [folder.note(), folder.depth_note()]
    _checked.add(folder.name)
    for note in filter(None, notes):
        _log_once(f"{folder.name}: {note}")
    return folder


_checked: set[str] = set()


@cache
def _log_once(note: str) -> None:
    """Log a note, once per process: a verb may open a folder several times."""
    log.info(f"note      {note}")


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
    return ", ".join(map(printable, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "none"


def printable(path: str) -> str:
    """The path with unprintable characters escaped, line breaks among them."""
    return path if path.isprintable() else "".join(map(_printable, path))


def _printable(letter: str) -> str:
    return letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
