"""``mapet tokenizer fit``: k-means over a frozen teacher's patch features."""

from dataclasses import dataclass, field

from mapet.api.fit_tokenizer import fit_tokenizer
from mapet.cli.options import parse
from mapet.cli.output import made
from mapet.config.verbs import FitTokenizerSettings
from mapet.utils.log import log

ABOUT = """Fit a codebook: k-means over a frozen teacher's features of all patches.

k-CLIP as published is --teacher resnet50x64_clip.openai --kmeans-init sample and the defaults: images of 448 pixels,
14 x 14 features of 4096 channels, not normalised, the best of 5 runs of 20 iterations, over at most 512 features a
code.

Under torchrun each process reads its share of the images:

torchrun --nproc-per-node 8 -m mapet tokenizer fit DATA --out FOLDER"""


@dataclass(frozen=True)
class Options:
    """Options of ``mapet tokenizer fit DATA``."""

    data: str = ""
    """A folder of images, nested in any way, or cifar10; the same as DATA."""
    out: str = ""
    """Folder for the tokenizer."""
    overwrite: bool = False
    """Replace the tokenizer in the folder; only files that mapet wrote are deleted."""
    settings: FitTokenizerSettings = field(default_factory=FitTokenizerSettings)


def command(arguments: list[str]) -> int:
    """Fit, and print where the tokenizer is."""
    o = parse(Options(), arguments, "tokenizer fit DATA", ABOUT)
    made(fit_tokenizer(o.data, o.out, overwrite=o.overwrite, settings=o.settings))
    log.info(f"saved     {o.out}")
    return 0
