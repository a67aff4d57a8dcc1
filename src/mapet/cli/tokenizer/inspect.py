"""``mapet tokenizer inspect``: health of a tokenizer, information in its tokens, and images of its codes."""

from dataclasses import dataclass, field

from mapet.api.inspect_tokenizer import FINDINGS, inspect_tokenizer
from mapet.api.tokenizer_report import COLUMN, report_lines
from mapet.cli.options import parse
from mapet.cli.output import made
from mapet.config.verbs import InspectTokenizerSettings
from mapet.utils.log import log


@dataclass(frozen=True)
class Options:
    """Options of ``mapet tokenizer inspect FOLDER DATA``."""

    folder: str = ""
    """Folder of a tokenizer; the same as FOLDER."""
    data: str = ""
    """A folder of images, packed or not, or cifar10; the same as DATA."""
    out: str | None = None
    """Folder for inspect.json and the figures; None: FOLDER/inspect."""
    settings: InspectTokenizerSettings = field(default_factory=InspectTokenizerSettings)


def command(arguments: list[str]) -> int:
    """Inspect, and print the findings."""
    o = parse(Options(), arguments, "tokenizer inspect FOLDER DATA", "Health of a tokenizer, and images of its codes.")
    found = made(inspect_tokenizer(o.folder, o.data, o.out, settings=o.settings))
    for line in report_lines(found):
        log.info(line)
    files = ", ".join([FINDINGS, *(f"{name} and .svg" for name in found["figures"])])
    log.info(f"{'saved':<{COLUMN}}{files} in {o.out or f'{o.folder}/inspect'}")
    return 0
