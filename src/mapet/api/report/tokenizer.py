"""The report of what ``mapet tokenizer inspect`` found."""

import json
from pathlib import Path
from typing import Any

from mapet.api.report.sections import filled, section
from mapet.config.report import ReportSettings
from mapet.utils.errors import MapetError, reason
from mapet.viz.report.page import Page, Part, Table, image

CAPTIONS = {
    "codes.png": "Patches of some codes: each row shows those nearest to one code, outlined, with their surroundings.",
    "tokens.png": "Some images and their tokens; a code has the same colour everywhere, near codes have near colours.",
    "usage.png": "Share of patches per code, most frequent first.",
}


def page(folder: Path, s: ReportSettings) -> Page:
    """Health, what tokens tell of position and label, and the figures.

    Raises:
        MapetError: ``inspect.json`` cannot be read.
    """
    path = folder / "inspect.json"
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        about, verdict = found["tokenizer"], found["verdict"]
        lead = (
            f"{about['kind']} with a grid of {about['grid'][0]} × {about['grid'][1]} tokens, on {found['data']}: "
            f"{verdict}. Hash {about['hash']}."
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MapetError(f"{path} cannot be read ({reason(error)}): run mapet tokenizer inspect again.") from error
    sections = [
        section("Numbers", lambda: _numbers(found)),
        section("Figures", lambda: [image(folder / name, CAPTIONS[name], CAPTIONS[name]) for name in found["figures"]]),
    ]
    return Page("Tokenizer", lead, filled(sections), [str(one) for one in found.get("warnings", [])])


def _numbers(found: dict[str, Any]) -> list[Part]:
    """One table per group of findings."""
    parts: list[Part] = []
    for name in ("health", "distortion", "position", "token", "image", "agreement"):
        if isinstance(values := found.get(name), dict):
            rows = [(key.replace("_", " "), _shown(value)) for key, value in values.items()]
            parts.append(Table(name, rows, (name, "")))
    return parts


def _shown(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
