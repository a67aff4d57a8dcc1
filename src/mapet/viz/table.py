"""Tables of a comparison: plain text, Markdown, LaTeX and CSV, and one sentence per metric."""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO

from mapet.engine.progress import clock

WIDTH = 80  # characters per line of plain text
TITLES = {"epochs": "Equal epochs", "compute": "Equal compute"}
NAMES = {"knn": "k-NN", "segment-knn": "k-NN mIoU", "segment-linear": "linear mIoU"}
HEAD = ("", "epochs", "images", "GMAC", "PFLOP", "time", "GiB")
LEGEND = (
    "images: seen in training; GMAC: multiply-accumulates of one image's forward pass; PFLOP: of the whole training, "
    "two per multiply-accumulate; time: training steps of one run, [h:]mm:ss; GiB: peak memory (CPU: of the process)"
)

Key = tuple[str, str]  # evaluation and metric


@dataclass(frozen=True)
class Estimate:
    """A share in [0, 1]: mean over ``count`` seeds ± ``reach``, half of its 95 % interval; None for one seed."""

    value: float
    reach: float | None
    count: int

    def __str__(self) -> str:
        reach = "" if self.reach is None else f" ± {100 * self.reach:.1f}"
        return f"{100 * self.value:.1f}{reach}"

    def overlaps(self, other: "Estimate") -> bool:
        """Return whether the two intervals overlap; both must have one."""
        assert self.reach is not None
        assert other.reach is not None
        return abs(self.value - other.value) <= self.reach + other.reach


@dataclass(frozen=True)
class Entry:
    """One row: cost and accuracy of a method with one setting, over its seeds.

    Attributes:
        method: an objective or a baseline.
        setting: values of the varied settings, as text; may be empty.
        epochs: number of training epochs.
        images: number of images seen in training.
        gmac: multiply-accumulates of one image's forward pass, in 10⁹.
        pflop: floating-point operations of the whole training, in 10¹⁵.
        seconds: mean wall time of training, if known.
        peak: peak memory in GiB, if known.
        accuracy: estimates by evaluation and metric.
    """

    method: str
    setting: str
    epochs: float
    images: int
    gmac: float
    pflop: float
    seconds: float | None
    peak: float | None
    accuracy: Mapping[Key, Estimate]

    @property
    def name(self) -> str:
        """Method, with its setting in parentheses."""
        return f"{self.method} ({self.setting})" if self.setting else self.method


Budgets = Mapping[str, Sequence[Entry]]


def plain(entries: Sequence[Entry], width: int = WIDTH) -> str:
    """Return aligned columns; columns beyond ``width`` follow below, with the names repeated."""
    columns = list(zip(*cells(entries), strict=True))
    padded = [[text.rjust(max(map(len, column))) for text in column] for column in columns]
    first = [text.ljust(len(padded[0][0])) for text in columns[0]]
    blocks, room = [[first]], width - len(first[0])
    for column in padded[1:]:
        if room < 2 + len(column[0]) and len(blocks[-1]) > 1:
            blocks.append([first])
            room = width - len(first[0])
        blocks[-1].append(column)
        room -= 2 + len(column[0])
    parts = ("\n".join("  ".join(row).rstrip() for row in zip(*block, strict=True)) for block in blocks)
    return "\n\n".join(parts)


def markdown(budgets: Budgets, notes: Sequence[str]) -> str:
    """Return one table per budget under its heading, then the notes."""
    parts = []
    for budget, entries in budgets.items():
        header, *rows = cells(entries)
        lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"## {TITLES[budget]}\n\n{body}\n\n{_list(statements(entries))}")
    return "\n\n".join([*parts, _list([LEGEND, *notes])]) + "\n"


def latex(budgets: Budgets, notes: Sequence[str]) -> str:
    """Return one ``tabular`` per budget; needs the package booktabs."""
    parts = []
    for budget, entries in budgets.items():
        header, *rows = ([_escaped(text) for text in line] for line in cells(entries))
        begin = rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}"
        lines = [begin, r"\toprule", _row(header), r"\midrule", *map(_row, rows), r"\bottomrule", r"\end{tabular}"]
        parts.append("\n".join([f"% {TITLES[budget]}", *(f"% {line}" for line in statements(entries)), *lines]))
    return "\n\n".join([*parts, "\n".join(f"% {note}" for note in [LEGEND, *notes])]) + "\n"


def spreadsheet(budgets: Budgets) -> str:
    """Return CSV with unrounded numbers, one line per budget and entry; shares in [0, 1], seconds, GiB."""
    keys = _keys([entry for entries in budgets.values() for entry in entries])
    parts = [f"{what}_{metric}{part}" for what, metric in keys for part in ("", "_reach", "_seeds")]
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    about = ["method", "setting", "epochs", "images", "gmac", "pflop", "seconds", "peak"]
    writer.writerow(["budget", *about, *parts])
    for budget, entries in budgets.items():
        for entry in entries:
            found = [entry.accuracy.get(key) for key in keys]
            shares = [part for one in found for part in ((one.value, one.reach, one.count) if one else ("", "", 0))]
            writer.writerow([budget, *(getattr(entry, name) for name in about), *shares])
    return text.getvalue()


def statements(entries: Sequence[Entry]) -> list[str]:
    """Return one sentence per metric of several entries: the best mean, and the intervals that overlap with it."""
    found = {key: {e.name: e.accuracy[key] for e in entries if key in e.accuracy} for key in _keys(entries)}
    return [_statement(key, several) for key, several in found.items() if len(several) > 1]


def _statement(key: Key, found: Mapping[str, Estimate]) -> str:
    most = max(one.value for one in found.values())
    best = [name for name, one in found.items() if one.value == most]
    first, share = found[best[0]], " (all the same)" if len(best) > 1 else ""
    text = f"{heading(key)}: best by the mean: {', '.join(best)}, {first} %{share}"
    if any(one.reach is None for one in found.values()):
        return f"{text}; one seed has no interval"
    near = [name for name, one in found.items() if name not in best and one.overlaps(first)]
    return f"{text}; 95 % intervals that overlap with it: {', '.join(near) or 'none'}"


def heading(key: Key) -> str:
    """Return the column heading of an evaluation's metric."""
    what, metric = key
    return NAMES.get(what, what) if metric in ("top1", "mIoU") else metric


def cells(entries: Sequence[Entry]) -> list[list[str]]:
    """Return the header and one row per entry, as text."""
    keys = _keys(entries)
    rows = [[*HEAD, *map(heading, keys)]]
    for e in entries:
        about = [
            e.name,
            f"{round(e.epochs, 2):g}",
            _count(e.images),
            _digits(e.gmac),
            _digits(e.pflop),
            "" if e.seconds is None else clock(e.seconds),
        ]
        memory = "" if e.peak is None else f"{e.peak:.1f}"
        rows.append([*about, memory, *(str(e.accuracy.get(key, "")) for key in keys)])
    return rows


def _keys(entries: Sequence[Entry]) -> list[Key]:
    return list(dict.fromkeys(key for entry in entries for key in entry.accuracy))


def _count(number: int) -> str:
    return f"{number:,}" if number < 1_000_000 else f"{number / 1e6:#.4g} M"


def _digits(number: float) -> str:
    """Format with three significant digits."""
    return f"{number:#.3g}".rstrip(".") if number else "0"


def _row(texts: Sequence[str]) -> str:
    return " & ".join(texts) + r" \\"


def _escaped(text: str) -> str:
    return re.sub(r"([%&_#$])", r"\\\1", text).replace("±", r"$\pm$")


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
