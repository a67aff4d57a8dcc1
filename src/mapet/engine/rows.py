"""The rows of ``metrics.csv`` that are whole."""

from collections.abc import Iterator
from pathlib import Path

from mapet.utils.io import replace_file
from mapet.utils.log import log


def trim(path: Path, step: int) -> None:
    """Delete the rows after ``step`` and damaged ones. Rows of completed steps that are missing are logged."""
    content = path.read_bytes() if path.is_file() else b""
    header, *lines = content.decode(errors="replace").splitlines(keepends=True) or [""]
    rows = dict(_whole(header, lines)) if header.startswith("step,") else {}
    kept = [line for number, line in sorted(rows.items()) if number <= step]
    if len(kept) < step:
        log.info(f"note      {path} is damaged: the rows of {step - len(kept)} of {step} completed steps are missing")
    if path.is_file():
        replace_file(path, "".join([header, *kept] if kept or header.startswith("step,") else []))


def _whole(header: str, lines: list[str]) -> Iterator[tuple[int, str]]:
    """(step, line) of the rows with a number or nothing in each cell."""
    for line in lines:
        first, *others = line.rstrip("\n").split(",")
        if line.endswith("\n") and first.isdecimal() and len(others) == header.count(","):
            try:
                [float(cell) for cell in others if cell]
            except ValueError:
                continue
            yield int(first), line
