"""The rows of ``metrics.csv``: one per step, after a header."""

from collections import Counter
from contextlib import suppress
from itertools import islice
from pathlib import Path
from statistics import fmean

from mapet.utils.fingerprint import file_hash
from mapet.utils.io import replace_file

LONGEST = 5  # ranges of steps that are named
WINDOW = 50  # steps whose figures are averaged


def trim(path: Path, step: int, seal: str = "") -> str:
    """Delete the rows after ``step``, doubles, and lines that are not rows. Returns what was wrong, or "".

    Args:
        path: the file; it may be missing.
        step: completed steps of the checkpoint that training continues from.
        seal: size and hash of the file when that was written, if they are known.
    """
    found = fault(path, step, seal)
    header, *lines = _lines(path) or [b""]
    rows = {number: line for line in lines if (number := _step(line, header)) is not None and number <= step}
    if path.is_file():
        replace_file(path, b"".join([header, *(rows[number] for number in sorted(rows))]))
    return found


def fault(path: Path, step: int, seal: str = "") -> str:
    """What is wrong with the rows up to ``step``; empty if nothing. Arguments as those of ``trim``."""
    lines = _lines(path)
    steps = [_step(line, lines[0]) for line in lines[1:]]
    counts = Counter(number for number in steps if number is not None and number <= step)
    notes = []
    if missing := [number for number in range(1, step + 1) if number not in counts]:
        notes.append(f"lacks {_ranges(missing)}")
    if double := sorted(number for number, count in counts.items() if count > 1):
        notes.append(f"has {_ranges(double)} more than once")
    if not notes and seal and _seal_of_rows(path, int(seal.split()[0])) != seal:
        notes.append("was changed after it was written")
    return " and ".join(notes)


def recent_means(path: Path, count: int = WINDOW) -> tuple[int, dict[str, float]]:
    """The means of the figures of the last ``count`` steps that had images, by name; and how many these are."""
    lines = _lines(path)
    good = (line for line in reversed(lines[1:]) if _step(line, lines[0]) is not None and not line.endswith(b",\n"))
    rows = [[float(cell or "nan") for cell in line.decode().split(",")] for line in islice(good, count)]
    names = lines[0].decode("utf-8", "replace").rstrip("\n").split(",") if rows else []
    return len(rows), {name: fmean(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}


def _lines(path: Path) -> list[bytes]:
    """The complete lines, the header first; none if that is damaged."""
    content = path.read_bytes() if path.is_file() else b""
    lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
    return lines if lines and lines[0].startswith(b"step,") else []


def _step(line: bytes, header: bytes) -> int | None:
    """The step of a row; None if the line is not a row."""
    cells = line.decode("utf-8", "replace").rstrip("\n").split(",")
    with suppress(ValueError):
        for cell in cells:
            float(cell or 0)
        if len(cells) == header.count(b",") + 1 and int(cells[0]) > 0:
            return int(cells[0])
    return None


def _ranges(steps: list[int]) -> str:
    """Steps in words: "the steps 3, 5-7 and 2 more"."""
    found: list[list[int]] = []
    for step in steps:
        if found and step == found[-1][1] + 1:
            found[-1][1] = step
        else:
            found.append([step, step])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in found[:LONGEST]]
    more = f" and {sum(last - first + 1 for first, last in found[LONGEST:])} more" if found[LONGEST:] else ""
    return f"the step{'s' if len(steps) > 1 else ''} {', '.join(texts)}{more}"


def _seal_of_rows(path: Path, size: int) -> str:
    return f"{size} {file_hash(path, size)}"
