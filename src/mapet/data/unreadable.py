"""Unreadable images: counted once each, listed in a file, and limited in number."""

from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path

from mapet.utils.errors import MapetError
from mapet.utils.io import encode_id, replace_file


class UnreadableImages:
    """Counts unreadable images by id and aborts when they are more than ``max_fraction`` of ``total``.

    Used in main processes only. Several processes may share a list: each reads the others' images with the next image
    that it adds.

    Args:
        total: number of images.
        max_fraction: limit, as a fraction of ``total``.
        path: file to which each new image is appended as ``id<TAB>reason``. The first one creates it; images that it
            lists already are counted. None keeps no file.
    """

    def __init__(self, total: int, max_fraction: float = 0.01, path: Path | None = None) -> None:
        self.total = total
        self.max_fraction = max_fraction
        self.path = path
        self._reasons = listed(path) if path else {}

    def __len__(self) -> int:
        return len(self._reasons)

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._reasons

    @property
    def reasons(self) -> dict[str, str]:
        """Why each image is unreadable, by image id."""
        return dict(self._reasons)

    def reason(self, image_id: str) -> str:
        """Why an image of the list is unreadable."""
        return self._reasons[image_id]

    def add(self, image_id: str, reason: str) -> None:
        """Add an image, unless it is known.

        Raises:
            MapetError: more than ``max_fraction * total`` images are unreadable.
        """
        if image_id not in self._reasons:
            self._reasons[image_id] = " ".join(reason.split())
            if self.path:
                self._append(self.path, image_id)
        if len(self) > self.max_fraction * self.total:
            raise MapetError(self._too_many())

    def reload(self) -> None:
        """Read what other processes have listed since."""
        self._reasons |= listed(self.path) if self.path else {}

    def _append(self, path: Path, image_id: str) -> None:
        from filelock import lock_descriptor

        _rename_old(path)
        with path.open("a+b") as file:
            with suppress(OSError):  # a file system without locks
                lock_descriptor(file.fileno())
            file.seek(0)
            content = file.read()
            others = _parsed(content)
            if content and not content.endswith(b"\n"):  # a kill or a full disk cut the last line
                file.truncate(content.rfind(b"\n") + 1)
                others = _parsed(content[: content.rfind(b"\n") + 1])
            if image_id not in others:
                file.write(encode_id(f"{image_id}\t{self._reasons[image_id]}\n"))
            self._reasons |= others

    def forget(self, usable: Callable[[str], bool]) -> None:
        """Remove the images that are ``usable`` by now."""
        known = len(self)
        self._reasons = {image_id: reason for image_id, reason in self._reasons.items() if not usable(image_id)}
        if self.path and len(self) < known:
            _rename_old(self.path)
            lines = (f"{image_id}\t{reason}\n" for image_id, reason in self._reasons.items())
            replace_file(self.path, encode_id("".join(lines)))
            if not self._reasons:
                self.path.unlink()

    def note(self) -> str | None:
        """A line for the log with the number and the first three images; None if there are none."""
        return f"{self._count()}: {self._examples()}" if self._reasons else None

    def _too_many(self) -> str:
        remedy = "Fix or remove them and delete that list" if self.path else "Fix or remove them"
        allowed = f"more than the {self.max_fraction:.2%} allowed"
        return f"{self._count()}, {allowed}: {self._examples()} {remedy}, or raise --max-bad-fraction."

    def _count(self) -> str:
        return f"{len(self)} of {self.total} images are unreadable"

    def _examples(self) -> str:
        examples = ", ".join(f"{image_id} ({reason})" for image_id, reason in islice(self._reasons.items(), 3))
        where = f" All are listed in {self.path}." if self.path else ""
        return f"{examples}{', …' if len(self) > 3 else ''}.{where}"


def listed(path: Path) -> dict[str, str]:
    """Read a list: image id → reason; empty if it is missing. Version 0.1 called it ``bad-pictures.txt``."""
    path = path if path.is_file() else _old(path)
    return _parsed(path.read_bytes()) if path.is_file() else {}


def _old(path: Path) -> Path:
    """The name of the same file in version 0.1."""
    return path.with_name(path.name.replace("unreadable-images", "bad-pictures"))


def _rename_old(path: Path) -> None:
    with suppress(FileNotFoundError):  # there is none, or another process renames it at the same time
        if not path.exists():
            _old(path).rename(path)


def _parsed(content: bytes) -> dict[str, str]:
    lines = content.decode("utf-8", "surrogateescape").split("\n")
    fields = (line.rpartition("\t") for line in lines)
    return {image_id: reason for image_id, tab, reason in fields if tab}
