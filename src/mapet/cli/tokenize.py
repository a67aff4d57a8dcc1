"""``mapet tokenize``: one visual token per patch for every image, on disk."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.api.images import BATCH, require_apart
from mapet.cli.options import parse, positional
from mapet.config.recipe import Accelerator, Model, Recipe, Runtime, Tokenizer
from mapet.utils.errors import MapetError
from mapet.utils.log import say, silent

if TYPE_CHECKING:
    pass
from mapet.api.tokenize import require_one_way, tokenize

ABOUT = """Write one visual token per patch for every image.

The tokenizer is a ready one (--tokenizer FOLDER), or a codebook is fitted first.

A call that was stopped at any moment goes on when it is given again.

Under torchrun each process tokenizes its share of the images:

torchrun --nproc-per-node 8 -m mapet tokenize DATA --out FOLDER"""


@dataclass(frozen=True)
class Options:
    """Options of ``mapet tokenize DATA``."""

    data: str = ""
    """A folder of images, nested in any way or packed by mapet pack, or cifar10; the same as DATA."""
    out: str = ""
    """Folder for the tokens; a started one is continued. A tokenizer that is fitted lies in OUT/tokenizer."""
    image_size: int = 224
    """Side of the student's images in pixels."""
    patch_size: int = 16
    """Side of the student's patches in pixels."""
    max_images: int | None = None
    """Use only so many of the images, chosen at random; None: all."""
    seed: int = 0
    """Of the sample and of k-means."""
    batch_size: int = BATCH
    """Images that the tokenizer sees at a time, in each process."""
    accelerator: Accelerator = "auto"
    """auto, cpu, cuda or mps."""
    workers: int | None = None
    """Processes that decode images; None: up to 8 beside an accelerator, none on a CPU."""
    max_bad_fraction: float = 0.01
    """Largest share of images that may be unreadable."""
    tokenizer: Tokenizer = field(default_factory=Tokenizer)


def command(arguments: list[str]) -> int:
    """Parse, tokenize, tell what came out."""
    from mapet.engine.distributed import process_group

    words, rest = positional(arguments, Options())
    o = parse(Options(), rest, "tokenize DATA", ABOUT)
    data, *more = [*words, *([o.data] if o.data else [])] or [""]
    if not data or not o.out or more:
        raise MapetError(
            "mapet tokenize needs images (a folder, or cifar10) and a folder: mapet tokenize DATA --out FOLDER."
        )
    if o.batch_size < 1:
        raise MapetError("--batch-size does not fit: it must be at least 1.")
    require_one_way(o.tokenizer, Tokenizer(), tokenizer=o.tokenizer.path)
    require_apart(o.out, data, o.tokenizer)
    model = Model(image_size=o.image_size, patch_size=o.patch_size)
    recipe = Recipe(data=data, max_images=o.max_images, seed=o.seed, model=model, tokenizer=o.tokenizer)
    runtime = Runtime(accelerator=o.accelerator, workers=o.workers, max_bad_fraction=o.max_bad_fraction)
    with process_group(o.accelerator) as together:
        tell = say if together.leads else silent
        try:
            store = tokenize(recipe, Path(o.out), runtime, say=tell, process_group=together, batch_size=o.batch_size)
        except KeyboardInterrupt:
            tell("stopped   what was written stays; go on with: the same command")
            return 130
        tell(f"{len(store):,} images × {store.grid[0] * store.grid[1]} tokens in {o.out}")
    return 0
