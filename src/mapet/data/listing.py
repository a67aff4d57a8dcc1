"""Which files of a folder are images, and which are left alone."""

import os
import re
from collections import Counter
from collections.abc import Iterator

from mapet.data.image import SUFFIXES, image_suffixes, is_image
from mapet.utils.errors import MapetError
from mapet.utils.owned import EXPORT, QUICKSTART, Tree

PACK = ("pack.json", "pictures.bin", "offsets.npy", "labels.npy")
NAMED = 4  # suffixes that a line names


class Listing:
    """The images below ``top``, in any order; hidden files and folders, and files that mapet wrote, are skipped.

    A file is an image if Pillow decodes its suffix; a file without a suffix, if it starts like an image.

    Attributes:
        folders: sub-folders of ``top``, except those that hold nothing but files of mapet.
        left: number of other files, by sub-folder of ``top`` ("" for ``top`` itself) and suffix.

    Raises:
        MapetError: a folder that cannot be listed.
    """

    def __init__(self, top: str, prefix: str) -> None:
        self.left: dict[str, Counter[str]] = {}
        self._folders: set[str] = set()
        self._ours: set[str] = set()
        self.images = list(self._walk(top, prefix, "", frozenset()))

    @property
    def folders(self) -> list[str]:
        """Sorted names."""
        return sorted(self._folders - (self._ours - self.left.keys()))

    def left_alone(self, folder: str | None = None) -> str:
        """As "3 files left alone: 2 .heic, 1 without suffix", of one sub-folder or of all; empty if there are none."""
        found = self.left if folder is None else {folder: self.left.get(folder, Counter[str]())}
        counts = sum(found.values(), Counter[str]())
        if not counts:
            return ""
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        named = [f"{number:,} {suffix or 'without suffix'}" for suffix, number in ranked[:NAMED]]
        rest = sum(number for _, number in ranked[NAMED:])
        named += [f"{rest:,} others"] * bool(rest)
        return f"{counts.total():,} file{'s' * (counts.total() > 1)} left alone: {', '.join(named)}"

    def _walk(self, folder: str, prefix: str, child: str, parents: frozenset[tuple[int, int]]) -> Iterator[str]:
        """Paths of the images below ``folder``, each after ``prefix``.

        Args:
            folder: path of the folder.
            prefix: its path below the root, with a final "/".
            child: the sub-folder of ``top`` that it lies in.
            parents: (device, inode) of its parents.
        """
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
        if child:
            self._folders.add(child)
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                yield from self._walk(entry.path, f"{prefix}{entry.name}/", child or entry.name, inside)
            elif self._takes(entry, child):
                yield prefix + entry.name

    def _takes(self, entry: "os.DirEntry[str]", child: str) -> bool:
        """Whether a file is an image; any other is counted."""
        name = entry.name.lower()
        if name.endswith(SUFFIXES):
            return True
        suffix = os.path.splitext(name)[1]
        suffix = suffix if any(map(str.isalpha, suffix)) else ""  # "scan.001" has none
        if suffix in image_suffixes() or (not suffix and entry.is_file() and is_image(entry.path)):
            return True
        if _OURS.fullmatch(entry.name):
            self._ours.add(child)
        else:
            self.left.setdefault(child, Counter())[suffix if suffix.isprintable() else "?"] += 1
        return False


def _names(tree: Tree) -> Iterator[str]:
    """The patterns of all files of a tree."""
    for pattern, inner in tree.items():
        yield from _names(inner) if inner is not None else [pattern]


_OURS = re.compile("|".join([*map(re.escape, PACK), *dict.fromkeys([*_names(QUICKSTART), *_names(EXPORT)])]))
