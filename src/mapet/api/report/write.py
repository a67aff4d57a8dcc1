"""Write the report of a folder."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.config.flat import updated
from mapet.config.report import ReportSettings
from mapet.utils.errors import MapetError, reason
from mapet.utils.log import log

if TYPE_CHECKING:
    from mapet.viz.report.page import Page

FILE = "report.html"
LONG = 60.0  # seconds of a training whose report is written unasked
KINDS = "of a run, of a comparison, or one that mapet tokenizer inspect wrote"


def report(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    refresh: int = 0,
    settings: ReportSettings | None = None,
    **changes: Any,
) -> Path:
    """Write one HTML file that shows what is in a folder; it needs no network and no JavaScript.

    What a damaged or unfinished folder lacks is left out, with the reason.

    >>> mapet.report("runs/first")

    Args:
        folder: of a run of any kind, of a comparison, or of the findings of ``inspect_tokenizer``.
        out: file to write; None: ``report.html`` in the folder. An earlier report is replaced.
        refresh: seconds after which a browser reads the file again; 0: never.
        settings: the defaults, without any.
        changes: settings by name, for instance ``images=0``.

    Returns:
        The file.

    Raises:
        MapetError: a folder of another kind, or a file in the way.
    """
    from mapet.utils.io import require_replaceable
    from mapet.utils.versions import versions
    from mapet.viz.report.page import is_report, write_page

    s, source = updated(settings or ReportSettings(), **changes), Path(folder).expanduser()
    path = source / FILE if out is None else Path(out).expanduser()
    build = _builder(source)
    require_replaceable(path, True, is_report)
    if path.suffix != ".html":
        raise MapetError(f"--out must end in .html, got {path}.")
    page, now = build(source, s), datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    version, again = versions(("mapet",))["mapet"] or "", f"To write it again: mapet report {source.name}"
    return write_page(replace(page, version=version, time=now, again=again, refresh=refresh), path)


def report_at_end(folder: Path) -> None:
    """Write the report of a training or a comparison of a minute or more; what prevents it is logged."""
    from mapet.api.report.comparison import seconds_of
    from mapet.engine.run import Run

    try:
        seconds = seconds_of(folder) or Run(folder).seconds(Run(folder).completed)
        if seconds >= LONG:
            log.info(f"report    {report(folder)}")
    except (MapetError, OSError, RuntimeError) as error:  # the results are complete without it
        log.info(f"note      no report is written: {reason(error)}")


def _builder(folder: Path) -> "Callable[[Path, ReportSettings], Page]":
    """What makes the page of a folder, by the files in it."""
    from mapet.api.report import comparison, finetuning, pretraining, tokenizer, training

    if not folder.is_dir():
        raise MapetError(f"{folder} is not a folder: give one {KINDS}.")
    for name, build in (
        ("compare.yaml", comparison.page),
        ("classifier.json", finetuning.page),
        ("segmenter.json", training.page),
        ("inspect.json", tokenizer.page),
        ("tokenizer.json", training.page),
        ("recipe.yaml", pretraining.page),
    ):
        if (folder / name).is_file():
            return build
    raise MapetError(f"{folder} holds nothing to report: give a folder {KINDS}.")
