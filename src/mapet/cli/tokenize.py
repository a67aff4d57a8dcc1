"""``mapet tokenize``: one visual token per patch for every image, on disk."""

from dataclasses import dataclass, field

from mapet.api.tokenize import tokenize
from mapet.cli.options import parse
from mapet.cli.output import made
from mapet.config.verbs import TokenizeSettings
from mapet.utils.log import log

ABOUT = """Write one visual token per patch for every image.

The tokenizer is a ready one (--tokenizer FOLDER), or a codebook is fitted first.

Run the same command again to continue after an interruption.

Under torchrun each process tokenizes its share of the images:

torchrun --nproc-per-node 8 -m mapet tokenize DATA --out FOLDER"""


@dataclass(frozen=True)
class Options:
    """Options of ``mapet tokenize DATA``."""

    data: str = ""
    """A folder of images, nested in any way or packed by mapet pack, or cifar10; the same as DATA."""
    out: str = ""
    """Folder for the tokens; an interrupted one is continued. A fitted tokenizer is written to OUT/tokenizer."""
    settings: TokenizeSettings = field(default_factory=TokenizeSettings)


def command(arguments: list[str]) -> int:
    """Tokenize, and print how many tokens there are."""
    o = parse(Options(), arguments, "tokenize DATA", ABOUT)
    try:
        store = made(tokenize(o.data, o.out, settings=o.settings))
    except KeyboardInterrupt:
        log.info("Interrupted. Run the same command to continue.")
        return 130
    log.info(f"{len(store):,} images × {store.length} tokens in {o.out}")
    return 0
