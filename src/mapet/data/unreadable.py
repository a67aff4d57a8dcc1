"""The ledger of images that could not be used: each counted once, listed, and bounded."""

from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path

from mapet.utils.errors import MapetError
from mapet.utils.io import encoded, replace_file
from mapet.utils.lock import hold


class UnreadableImages:
    """Counts bad images by key and stops the work when they are more than ``max_fraction`` of ``total``.

    Used in main processes only. With ``path`` every new key is appended to that file as ``key<TAB>reason``; the file is
    created by the first bad image, and the keys that it already lists are known (and counted) on reopening. Several
    processes may share it: each learns of the others' images with the next of its own.
    """

    def __init__(self, total: int, max_fraction: float = 0.01, path: Path | None = None) -> None:
        self.total = total
        self.max_fraction = max_fraction
        self.path = path
        self._reasons = listed(path) if path else {}

    def __len__(self) -> int:
        return len(self._reasons)

    def __contains__(self, key: str) -> bool:
        return key in self._reasons

    def add(self, key: str, reason: str) -> None:
        """Note one bad image; a key that is known already changes nothing.

        Raises:
            MapetError: more than ``max_fraction * total`` images are bad.
        """
        if key not in self._reasons:
            self._reasons[key] = " ".join(reason.split())
            if self.path:
                self._list(self.path, key)
        if len(self) > self.max_fraction * self.total:
            raise MapetError(self._too_many())

    def reload(self) -> None:
        """Read what other processes have listed since."""
        self._reasons |= listed(self.path) if self.path else {}

    def _list(self, path: Path, key: str) -> None:
        _rename_old(path)
        with path.open("a+b") as file:
            hold(file, wait=True)
            file.seek(0)
            others = _parsed(file.read())
            if key not in others:
                file.write(encoded(f"{key}\t{self._reasons[key]}\n"))
            self._reasons |= others

    def forget(self, usable: Callable[[str], bool]) -> None:
        """Take off the list what was mended: the keys that are ``usable`` now."""
        known = len(self)
        self._reasons = {key: reason for key, reason in self._reasons.items() if not usable(key)}
        if self.path and len(self) < known:
            _rename_old(self.path)
            replace_file(self.path, encoded("".join(f"{key}\t{reason}\n" for key, reason in self._reasons.items())))
            if not self._reasons:
                self.path.unlink()

    def note(self) -> str | None:
        """One line that names the first of them; None where there are none."""
        return f"{self._count()}: {self._examples()}" if self._reasons else None

    def _too_many(self) -> str:
        remedy = "Mend or remove them and delete that list" if self.path else "Mend or remove them"
        allowed = f"more than the {self.max_fraction:.2%} allowed"
        return f"{self._count()}, {allowed}: {self._examples()} {remedy}, or raise --max-bad-fraction."

    def _count(self) -> str:
        return f"{len(self)} of {self.total} images cannot be used"

    def _examples(self) -> str:
        examples = ", ".join(f"{key} ({reason})" for key, reason in islice(self._reasons.items(), 3))
        where = f" These are listed in {self.path}." if self.path else ""
        return f"{examples}{', …' if len(self) > 3 else ''}.{where}"


def listed(path: Path) -> dict[str, str]:
    """The reasons by key of a ledger's file; empty where there is none. Version 0.1 wrote ``bad-pictures.txt``."""
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
    return {key: reason for key, tab, reason in fields if tab}
