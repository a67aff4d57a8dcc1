"""``mapet tokenizer inspect``: health of a tokenizer, information in its tokens, and images of its codes."""

from dataclasses import dataclass, field

from mapet.api.inspect_tokenizer import FINDINGS, inspect_tokenizer
from mapet.api.tokenizer_report import COLUMN, report_lines
from mapet.cli.options import parse, positional
from mapet.config.verbs import InspectTokenizerSettings
from mapet.utils.errors import MapetError
from mapet.utils.log import log


@dataclass(frozen=True)
class Options:
    """Options of ``mapet tokenizer inspect FOLDER DATA``."""

    out: str | None = None
    """Folder for inspect.json and the figures; None: FOLDER/inspect."""
    settings: InspectTokenizerSettings = field(default_factory=InspectTokenizerSettings)


def command(arguments: list[str]) -> int:
    """Inspect, and print the findings."""
    words, rest = positional(arguments, Options())
    o = parse(Options(), rest, "tokenizer inspect FOLDER DATA", "Health of a tokenizer, and images of its codes.")
    folder, data, *more = [*words, "", ""]
    if any(more):
        raise MapetError(f'mapet tokenizer inspect takes one FOLDER and one DATA, not also "{more[0]}".')
    found = inspect_tokenizer(folder, data, o.out, settings=o.settings)
    for line in report_lines(found):
        log.info(line)
    files = ", ".join([FINDINGS, *found["figures"]])
    log.info(f"{'saved':<{COLUMN}}{files} in {o.out or f'{folder}/inspect'}")
    return 0
