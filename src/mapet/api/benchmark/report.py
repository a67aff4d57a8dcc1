"""The report: rows as text for the screen, as Markdown, and as JSON that can be read back."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from mapet.api.benchmark.case import OURS
from mapet.api.benchmark.process import last_error
from mapet.api.benchmark.rates import Rates
from mapet.api.benchmark.row import SCALING, Row, efficiency, over_ours
from mapet.utils.errors import MapetError
from mapet.utils.io import replace_file

JSON, MARKDOWN = "bench.json", "bench.md"
FORMAT = "mapet-bench-1"
COLUMNS = {"images/s": 8, "ms/step": 9, "fwd+bwd": 8, "GiB": 6, "TFLOP/s": 8, "of peak": 7, "waiting": 7, "ratio": 6}
HEADER = " ".join([" " * 12, *(title.rjust(width) for title, width in COLUMNS.items())])
LEGEND = (
    "step: forward, backward, clipping and optimiser, median of the rounds (fwd+bwd: the first two alone)",
    "memory: weights, gradients, optimiser's moments and a step at its peak, beyond what was there before",
    "FLOP: two per multiply-accumulate, of what is computed, forward and backward; of peak: over the fastest matrix "
    "product of this machine in the same precision, measured after each round; median of the rounds",
    "ratio: the baseline's step over ours (in brackets fwd+bwd, and in processor time); for scaling, the efficiency",
    "waiting: share of the time with loading that is spent waiting for images",
    "predicted: the sum of the parts of a step, each at the rate of this machine (measured after each round, medians), "
    "over the measured step",
)


@dataclass
class Report:
    """The result of a benchmark. Its files are complete after each row.

    Attributes:
        folder: of ``bench.json`` and ``bench.md``.
        about: date, command, machine and versions.
        rates: of the machine.
        rows: so far.
        failed: cases, or parts of a case, that could not be measured, with the reason.
    """

    folder: Path
    about: Mapping[str, Any]
    rates: Sequence[Rates] = ()
    rows: list[Row] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def put(self, row: Row) -> None:
        """Add or replace a row, and write the files."""
        index = next((n for n, one in enumerate(self.rows) if one.identity == row.identity), len(self.rows))
        self.rows[index : index + 1] = [row]
        self.write()

    def fail(self, what: str, error: Exception) -> str:
        """Record a failure and write the files; returns the reason in one line."""
        self.failed[what] = reason(error)
        self.write()
        return self.failed[what]

    def write(self) -> None:
        """Write both files."""
        plain = {
            "format": FORMAT,
            **self.about,
            "rates": [vars(one) for one in self.rates],
            "rows": [one.plain() for one in self.rows],
            "failed": self.failed,
        }
        replace_file(self.folder / JSON, json.dumps(plain, indent=1) + "\n")
        replace_file(self.folder / MARKDOWN, markdown(self))


def reason(error: Exception) -> str:
    """The error in one line, with its type unless it is meant for users."""
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = lines[: 2 if lines and lines[0].endswith(":") else 1]
    if "Traceback (most recent call last)" in text:  # of another process
        said = [*lines[:1], last_error(text)]
    kind = [] if said and isinstance(error, MapetError | torch.OutOfMemoryError) else [f"{type(error).__name__}:"]
    return shorten(" ".join([*kind, *said]).removesuffix(":"), 300)


def begin(folder: Path, about: Mapping[str, Any]) -> Report:
    """A new report in ``folder``, which is created if it does not exist.

    Raises:
        MapetError: the folder has a report, or is a file.
    """
    for name in (JSON, MARKDOWN):
        if (folder / name).exists():
            raise MapetError(f"{folder} already has a {name}: give another --out.")
    if folder.exists() and not folder.is_dir():
        raise MapetError(f"{folder} is a file: give another --out.")
    folder.mkdir(parents=True, exist_ok=True)
    return Report(folder, about)


def read_rates(path: Path) -> list[Rates]:
    """The rates in a ``bench.json``.

    Raises:
        MapetError: no such file, or another kind of file.
    """
    try:
        found = json.loads(path.read_text())
        return [Rates(**one) for one in found["rates"]]
    except OSError as error:
        raise MapetError(f"Cannot read {path}: {error.strerror}. Give a {JSON} that mapet bench wrote.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise MapetError(f"{path} is not a {JSON} of mapet bench.") from error


def line(row: Row, rows: Sequence[Row]) -> str:
    """One row as a line under ``HEADER``."""
    ratio = _ratio(row, rows)
    cells = [
        f"{row.images_per_second:.4g}",
        f"{1e3 * row.seconds:.1f}",
        f"{1e3 * row.passes_seconds:.1f}",
        *_costs(row),
        _cell(row.waiting, lambda n: f"{n:.1%}"),
        _cell(ratio, lambda n: f"{n:.2f}"),
    ]
    padded = (cell.rjust(width) for cell, width in zip(cells, COLUMNS.values(), strict=True))
    return " ".join([f"{label(row):<12}", *padded]).rstrip()


def notes(row: Row, rows: Sequence[Row]) -> list[str]:
    """Details of a row that the columns do not show."""
    said = []
    if row.predicted_ratio is not None and row.predicted is not None:
        parts = ", ".join(f"{name} {part / row.predicted:.0%}" for name, part in row.parts.items())
        said.append(f"predicted {1e3 * row.predicted:.1f} ms, {row.predicted_ratio:.2f} × measured: {parts}")
    if row.predicted_memory is not None:
        ratio = f", {row.predicted_memory / row.memory:.2f} × measured" if row.memory else ""
        said.append(f"predicted {row.predicted_memory / 2**30:.2f} GiB{ratio}")
    if row.loading is not None:
        said.append(f"with loading {row.batch / row.loading:.4g} images/s, {1e3 * row.loading:.1f} ms/step")
    if row.implementation not in (OURS, SCALING):
        figures = {"fwd+bwd": "passes_seconds", "memory": "memory", "with loading": "loading"}
        found = {name: over_ours(row, rows, figure) for name, figure in figures.items()}
        said.append("over ours: " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in found.items() if ratio))
    return said


def label(row: Row) -> str:
    """The row's name."""
    plural = "es" if row.devices > 1 else ""
    return f"{row.devices} process{plural}" if row.implementation == SCALING else row.implementation


def markdown(report: Report) -> str:
    """One table of all cases, with machine, command and legend."""
    head = (
        "objective",
        "model",
        "batch",
        "precision",
        "compiled",
        "",
        "images/s",
        "ms/step (min … max)",
        "fwd+bwd, ms",
        "GiB",
        "TFLOP/s",
        "of peak",
        "fwd+bwd",
        "with loading, images/s",
        "waiting",
        "ratio (fwd+bwd; processor)",
        "predicted",
    )
    lines = [head, ("---",) * len(head), *(_cells(row, report.rows) for row in report.rows)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    speeds = [
        f"{one.precision}, width {one.width}: peak {one.peak / 1e12:.4g} TFLOP/s; a block's products "
        f"{one.linear / 1e12:.4g}, attention {one.attention / 1e12:.4g}, masked {one.masked / 1e12:.4g} TFLOP/s"
        for one in report.rates
    ]
    missing = [f"not measured: {case}: {reason}" for case, reason in report.failed.items()]
    about = f"{report.about['date']}, {report.about['machine']}:\n`{report.about['command']}`"
    return "\n\n".join([about, table, "\n".join(f"- {text}" for text in [*speeds, *missing, *LEGEND])]) + "\n"


def _ratio(row: Row, rows: Sequence[Row]) -> float | None:
    return efficiency(row, rows) if row.implementation == SCALING else over_ours(row, rows, "seconds")


def _cells(row: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    ratio = _ratio(row, rows)
    others = [over_ours(row, rows, name) for name in ("passes_seconds", "passes_processor_seconds")]
    brackets = f" ({'; '.join(f'{one:.2f}' for one in others if one)})" if any(others) else ""
    return (
        row.objective,
        row.model,
        f"{row.batch}" + (f" in {row.accumulate}" if row.accumulate > 1 else ""),
        row.precision,
        "yes" if row.compiled else "no",
        label(row),
        f"{row.images_per_second:.4g}",
        f"{1e3 * row.seconds:.1f} ({1e3 * min(row.step):.1f} … {1e3 * max(row.step):.1f})",
        f"{1e3 * row.passes_seconds:.1f}",
        *_costs(row),
        _cell(row.passes_share, lambda n: f"{n:.1%}"),
        _cell(row.loading, lambda n: f"{row.batch / n:.4g}"),
        _cell(row.waiting, lambda n: f"{n:.1%}"),
        _cell(ratio, lambda n: f"**{n:.2f}**") + brackets,
        _cell(row.predicted_ratio, lambda n: f"{n:.2f}"),
    )


def _costs(row: Row) -> tuple[str, str, str]:
    """Memory in GiB, TFLOP/s, and their share of the peak."""
    return (
        _cell(row.memory, lambda n: f"{n / 2**30:.2f}"),
        _cell(row.flops, lambda n: f"{n / 1e12:.4g}"),
        _cell(row.share, lambda n: f"{n:.1%}"),
    )


def _cell(value: float | None, text: Callable[[float], str]) -> str:
    return "" if value is None else text(value)
