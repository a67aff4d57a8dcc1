"""``mapet tokenizer fit``: k-means over a frozen teacher's patch features.

    mapet tokenizer fit IMAGENET/train --teacher resnet50x64_clip.openai --kmeans-init sample --out kclip

is k-CLIP with the numbers of aimagelab/MaPeT (data/kmeans, commit 6d276c9): CLIP's RN50x64 at 14 × 32 = 448 pixels, the
largest centred square resized bicubic, CLIP's mean and deviation; the last residual stage before attention pooling,
14 × 14 × 4096, without normalisation; Euclidean k-means of 8192 codes over at most 8192 × 512 = 4,194,304
vectors (68.7 GB, divided among the processes), 20 iterations, the best of 5 runs. There faiss starts each run from a
plain sample, as ``--kmeans-init sample`` does here; the default, k-means++, starts lower. How many vectors were
really used there is not known.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.api.images import LEDGER, ImagePass
from mapet.config.recipe import Recipe
from mapet.engine.stages import Stages
from mapet.utils.errors import MapetError
from mapet.utils.io import require_free
from mapet.utils.log import say
from mapet.utils.owned import (
    A_TOKENIZER,
    LISTS,
    MARK,
    TOKENIZERS,
    drop,
    is_marked,
    mark,
    put_aside,
    put_back,
    require_ours,
)
from mapet.utils.process_group import ProcessGroup

if TYPE_CHECKING:
    from torch import Tensor

    from mapet.tokenizers.codebook import Codebook
    from mapet.tokenizers.codebook_fit import KMeansSettings


@contextmanager
def _begun(out: Path) -> Iterator[None]:
    """The folder to write into. The list of images that an earlier fit could not read is deleted after this one.

    The method ``save`` replaces the tokenizer itself, once the new one is complete beside it.
    """
    put_back(out, LISTS)
    mark(out, A_TOKENIZER)
    if any(out.glob(f"{LEDGER}*")):
        put_aside(out, LISTS)
    try:
        yield
    except BaseException:
        put_back(out, LISTS)
        if [path.name for path in out.iterdir()] == [MARK]:
            (out / MARK).unlink()
        raise
    drop(out)


def _require_free(out: Path, overwrite: bool) -> None:
    """Refuse a folder that is not ours to write into."""
    from mapet.tokenizers.tokenizer import FIELDS, NEXT, PART

    if (there := (out / FIELDS).exists()) and not overwrite:
        raise MapetError(f"{out} holds a tokenizer already: give another --out, or replace it with --overwrite.")
    if there or is_marked(out, A_TOKENIZER):
        require_ours(out, TOKENIZERS)
    else:
        require_free(out, (PART, NEXT, f"{MARK}.part"))


def fit(
    recipe: Recipe, images: ImagePass, folder: Path, *, grid: tuple[int, int], say: Callable[[str], None] = say
) -> "Codebook":
    """Fit the recipe's codebook on ``images`` and save it in ``folder``.

    Raises:
        MapetError: a teacher that cannot be had or cannot give the grid, too few or too many bad images, features
            that are not finite, too little memory.
    """
    from mapet.engine.distributed import pick_device
    from mapet.tokenizers.codebook import Codebook
    from mapet.tokenizers.teacher import open_teacher

    t, process_group, device = recipe.tokenizer, images.process_group, pick_device(images.runtime.accelerator)
    weights = Path(t.teacher_weights) if t.teacher_weights else None
    teacher = open_teacher(
        t.teacher,
        grid,
        patch_size=recipe.model.patch_size,
        stage=t.teacher_stage,
        output=t.teacher_output,
        weights=weights,
    )
    settings, indices = fitting(recipe), _some(images.indices, recipe)
    length = grid[0] * grid[1]
    gib = settings.footprint(len(indices) * length, teacher.width, process_group) / 2**30
    held = f"{settings.held(len(indices) * length):,} features of {teacher.width} channels"
    say(f"memory    at most {gib:.1f} GiB{' a process' * (process_group.count > 1)} beside the teacher: {held}")
    with Stages(shown=process_group.leads) as stages:
        book = Codebook.fit(
            teacher,
            lambda some: images.decoded(teacher.view, some),
            indices,
            settings,
            device=device,
            process_group=process_group,
            progress=stages,
        )
    book.provenance["fit_images"] = t.fit_images
    images.settle()
    if process_group.leads:
        book.save(folder)
    process_group.wait()
    say(describe(book))
    say(f"fitted    {_figures(book, stages, process_group)}")
    return book


def fitting(recipe: Recipe) -> "KMeansSettings":
    """The settings of k-means in a recipe."""
    from mapet.tokenizers.codebook_fit import KMeansSettings

    t = recipe.tokenizer
    return KMeansSettings(
        codes=t.vocab_size,
        samples=t.samples,
        iterations=t.iterations,
        restarts=t.restarts,
        start=t.kmeans_init,
        metric=t.metric,
        mode=t.kmeans_mode,
        precision=t.kmeans_precision,
        seed=recipe.seed,
    )


def describe(book: "Codebook") -> str:
    """One line about a codebook."""
    rows, columns = book.grid
    even = f" (perplexity {book.provenance['perplexity']:.0f})" if "perplexity" in book.provenance else ""
    return f"codebook  {book.vocabulary} codes{even} over {book.teacher.name} at {rows} × {columns} patches"


def _some(indices: "Tensor", recipe: Recipe) -> "Tensor":
    """The places of the images that the codebook is fitted on."""
    from mapet.utils.rng import random_bits

    count = recipe.tokenizer.fit_images or len(indices)
    return indices[random_bits(recipe.seed, 1, indices).argsort(stable=True)[:count].sort().values]


def _figures(book: "Codebook", stages: Stages, process_group: ProcessGroup) -> str:
    """What the last line tells: the objective, the codes in use, the time, and the pace of all processes together."""
    import torch

    from mapet.engine.progress import clock

    story, read, seconds = book.provenance, stages.done["features"], stages.seconds["features"]
    whole = sum(stages.seconds.values())
    if story["mode"] == "stream":
        read, seconds = read + stages.done["k-means"] // (book.grid[0] * book.grid[1]), whole
    pace = int(process_group.sum(torch.tensor([read]))) / max(seconds, 1e-9)
    used = sum(count > 0 for count in story["counts"])
    objective = f"objective {min(story['objective']):.5g}, {len(story['objective']) - 1} rounds"
    return f"{objective}, {used:,} of {book.vocabulary:,} codes in use; {clock(whole)}, {pace:,.0f} images/s"
