"""``mapet tokenizer fit``: k-means over a frozen teacher's patch features.

    mapet tokenizer fit IMAGENET/train --teacher resnet50x64_clip.openai --kmeans-init sample --out kclip

is k-CLIP with the numbers of aimagelab/MaPeT (data/kmeans, commit 6d276c9): CLIP's RN50x64 at 14 × 32 = 448 pixels, the
largest centred square resized bicubic, CLIP's mean and deviation; the last residual stage before attention pooling,
14 × 14 × 4096, without normalisation; Euclidean k-means of 8192 codes over at most 8192 × 512 = 4,194,304
vectors (68.7 GB, divided among the processes), 20 iterations, the best of 5 runs. There faiss starts each run from a
plain sample, as ``--kmeans-init sample`` does here; the default, k-means++, starts lower. How many vectors were
really used there is not known.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.api.images import BATCH, ImagePass, require_apart
from mapet.cli.options import parse, positional
from mapet.config.recipe import Accelerator, Model, Recipe, Runtime, Tokenizer
from mapet.utils.errors import MapetError
from mapet.utils.log import say, silent

if TYPE_CHECKING:
    pass
from mapet.api.fit_tokenizer import _begun, _require_free, fit

ABOUT = """Fit a codebook: k-means over a frozen teacher's features of all patches.

k-CLIP as published is --teacher resnet50x64_clip.openai --kmeans-init sample and the defaults: images of 448 pixels,
14 x 14 features of 4096 channels, not normalised, the best of 5 runs of 20 rounds, over at most 512 features a code.

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
    """Replace the tokenizer that is in the folder; nothing but files of mapet is deleted."""
    grid: tuple[int, int] | None = None
    """Rows and columns of patches, as many of either; None: those of the next two."""
    image_size: int = 224
    """Side of the student's images in pixels."""
    patch_size: int = 16
    """Side of the student's patches in pixels."""
    max_images: int | None = None
    """Use only so many of the images, chosen at random; None: all."""
    seed: int = 0
    """Of the sample and of k-means."""
    batch_size: int = BATCH
    """Images that the teacher sees at a time, in each process."""
    accelerator: Accelerator = "auto"
    """auto, cpu, cuda or mps."""
    workers: int | None = None
    """Processes that decode images; None: up to 8 beside an accelerator, none on a CPU."""
    max_bad_fraction: float = 0.01
    """Largest share of images that may be unreadable."""
    tokenizer: Tokenizer = field(default_factory=lambda: Tokenizer(restarts=5))


def command(arguments: list[str]) -> int:
    """Parse, fit, save, tell what came out."""
    from mapet.engine.distributed import process_group

    words, rest = positional(arguments, Options())
    o = parse(Options(), rest, "tokenizer fit DATA", ABOUT)
    out, recipe, runtime = _asked(o, words)
    with process_group(o.accelerator) as together, _begun(out) if together.leads else nullcontext():
        together.wait()
        images = ImagePass.of(recipe, runtime, out, together, o.batch_size)
        tell = say if together.leads else silent
        fit(recipe, images, out, grid=o.grid or recipe.grid, say=tell)
        if note := images.bad.note():
            tell(f"note      {note}")
        tell(f"saved     {out}")
    return 0


def _asked(o: Options, words: list[str]) -> tuple[Path, Recipe, Runtime]:
    """The folder to write, the settings as a recipe, and the machine's."""
    data, *more = [*words, *([o.data] if o.data else [])] or [""]
    if not data or not o.out or more:
        raise MapetError(
            "mapet tokenizer fit needs images (a folder, or cifar10) and a folder to write: "
            "mapet tokenizer fit DATA --out FOLDER."
        )
    if o.tokenizer.path:
        raise MapetError("mapet tokenizer fit makes a tokenizer, so it takes no --tokenizer: use mapet tokenize.")
    if o.batch_size < 1 or min(o.grid or (1, 1)) < 1:
        raise MapetError("--batch-size and --grid must be at least 1.")
    if o.grid and o.grid[0] != o.grid[1]:
        raise MapetError(
            f"--grid {o.grid[0]} {o.grid[1]} is of oblong images, and all students see squares: "
            "give as many rows as columns."
        )
    out = Path(o.out)
    require_apart(o.out, data, o.tokenizer)
    _require_free(out, o.overwrite)
    model = Model(image_size=o.image_size, patch_size=o.patch_size)
    recipe = Recipe(data=data, max_images=o.max_images, seed=o.seed, model=model, tokenizer=o.tokenizer)
    return out, recipe, Runtime(accelerator=o.accelerator, workers=o.workers, max_bad_fraction=o.max_bad_fraction)
