"""``mapet tokenizer import``: published weights into a tokenizer's folder."""

from dataclasses import dataclass, field

from mapet.api.import_tokenizer import import_tokenizer
from mapet.cli.options import parse
from mapet.cli.output import made
from mapet.config.verbs import ImportTokenizerSettings
from mapet.utils.log import log


@dataclass(frozen=True)
class Options:
    """Options of ``mapet tokenizer import FILE``."""

    file: str = ""
    """Published weights; the same as FILE."""
    kind: str = ""
    """dalle, vqgan (of taming-transformers) or vqkd (of BEiT v2)."""
    out: str = ""
    """Folder to write."""
    settings: ImportTokenizerSettings = field(default_factory=ImportTokenizerSettings)


def command(arguments: list[str]) -> int:
    """Import, and print a line about the tokenizer."""
    o = parse(Options(), arguments, "tokenizer import FILE", "Turn published weights into a tokenizer's folder.")
    network = made(import_tokenizer(o.file, o.out, o.kind, settings=o.settings))
    (rows, columns), (height, width) = network.grid, network.view.size
    codes = f"{network.vocabulary:,} codes, {rows} × {columns} tokens for {height} × {width} pixels"
    log.info(f"{network.kind}  {codes}, hash {network.hash} → {o.out}")
    return 0
