"""A page as data, and as HTML."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.utils.io import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

MARK = '<meta name="generator" content="mapet report">'
PIXELS = 96  # CSS pixels of an inch


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Code:
    """Lines in a fixed-width font."""

    text: str
    kind: str = "code"


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first cell of a row names it, and the last ``words`` hold words in place of numbers."""

    label: str
    rows: Sequence[Sequence[str]]
    header: Sequence[str] = ()
    words: int = 0
    kind: str = "table"


@dataclass(frozen=True)
class Figure:
    """An image inside the page.

    Attributes:
        source: a data URI.
        alt: what it shows, for who cannot see it.
        caption: how to read it.
        width: in CSS pixels.
    """

    source: str
    alt: str
    caption: str
    width: int
    kind: str = "figure"


Part = Text | Code | Table | Figure


@dataclass(frozen=True)
class Section:
    """Parts under a heading."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title, lead: heading and first paragraph.
        sections: what follows.
        notes: what looks wrong, one sentence each.
        version, time: of mapet, and when it was written.
        again: how to write it again.
        refresh: seconds after which a browser reads it again; 0: never.
    """

    title: str
    lead: str
    sections: Sequence[Section]
    notes: Sequence[str] = ()
    version: str = ""
    time: str = ""
    again: str = ""
    refresh: int = field(default=0)


def html(page: Page) -> str:
    """The page as HTML; all text is escaped."""
    from jinja2 import Environment, StrictUndefined

    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(page=page)


def write_page(page: Page, out: Path) -> Path:
    """Write the page atomically; returns ``out``."""
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, html(page))
    return out


def is_report(path: Path) -> bool:
    """Whether ``write_page`` wrote the file."""
    try:
        with path.open("rb") as file:
            return MARK.encode() in file.read(1000)
    except OSError:
        return False


def drawn(figure: "Drawing", alt: str, caption: str) -> Figure:
    """A chart as SVG, the same bytes for the same values."""
    from mapet.viz.figures import encoded

    width = round(PIXELS * float(figure.get_size_inches()[0]))
    return Figure(_uri("image/svg+xml", encoded(figure, ".svg")), alt, caption, width)


def image(path: Path, alt: str, caption: str, most: int = 928) -> Figure:
    """An image file, at most so many CSS pixels wide; photographs and maps as WebP, which is smaller."""
    from PIL import Image

    with Image.open(path) as opened:
        shown = opened.convert("RGB")
    if shown.width > 2 * most:
        shown.thumbnail((2 * most, 4 * most))
    content = BytesIO()
    shown.save(content, "WEBP", quality=85)
    return Figure(_uri("image/webp", content.getvalue()), alt, caption, min(most, shown.width))


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{b64encode(content).decode()}"
