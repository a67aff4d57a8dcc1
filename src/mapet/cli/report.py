"""``mapet report``: a folder on one page."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from mapet.api.report import report
from mapet.cli.options import parse, require
from mapet.cli.output import made
from mapet.config.report import ReportSettings
from mapet.utils.lock import is_locked
from mapet.utils.log import log

ABOUT = """Write one HTML file that shows what is in FOLDER.

FOLDER is a pre-training, a fine-tuning, a segmentation, a VQ-KD training, a comparison, or what mapet tokenizer inspect
wrote.

The file needs no network and no JavaScript. What FOLDER lacks is left out, with the reason."""
SECONDS = 30  # between two reports of a run that is watched


@dataclass(frozen=True)
class Options:
    """Options of ``mapet report``."""

    folder: str = ""
    """A pre-training, fine-tuning, segmentation, VQ-KD training, comparison, or what mapet tokenizer inspect wrote."""
    out: str | None = None
    """HTML file to write; None: report.html in FOLDER. An earlier report is replaced."""
    watch: bool = False
    """Write it again every 30 seconds, without images, as long as the run goes on; at its end with images."""
    settings: ReportSettings = field(default_factory=ReportSettings)


def command(arguments: list[str]) -> int:
    """Parse, write, print where."""
    o = parse(Options(), arguments, "report FOLDER", ABOUT)
    require("report", folder=o.folder)
    while o.watch and is_locked(Path(o.folder).expanduser()):
        path = report(o.folder, o.out, refresh=SECONDS, settings=o.settings, images=0)
        log.info(f"report    {path}")
        time.sleep(SECONDS)
    print(f"report in {made(report(o.folder, o.out, settings=o.settings))}")
    return 0
