"""Fit a codebook: k-means over a frozen teacher's patch features.

    mapet.fit_tokenizer("IMAGENET/train", "kclip", teacher="resnet50x64_clip.openai", kmeans_init="sample")

is k-CLIP with the numbers of aimagelab/MaPeT (data/kmeans, commit 6d276c9): CLIP's RN50x64 at 14 × 32 = 448 pixels, the
largest centred square resized bicubic, CLIP's mean and deviation; the last residual stage before attention pooling,
14 × 14 × 4096, without normalisation; Euclidean k-means of 8192 codes over at most 8192 × 512 = 4,194,304
vectors (68.7 GB, divided among the processes), 20 iterations, the best of 5 runs. There faiss starts each run from a
plain sample, as ``kmeans_init="sample"`` does here; the default, k-means++, starts lower. How many vectors were used
there is not published.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.api.images import UNREADABLE, ImagePass, absolute_paths, require_inputs_outside
from mapet.config.flat import updated
from mapet.config.recipe import Recipe
from mapet.config.verbs import FitTokenizerSettings
from mapet.engine.stages import StageProgress
from mapet.utils.errors import MapetError
from mapet.utils.io import require_free
from mapet.utils.log import log
from mapet.utils.owned import (
    A_TOKENIZER,
    LISTS,
    MARK,
    TOKENIZER,
    TOKENIZERS,
    discard,
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
    from mapet.tokenizers.codebook_fit import Kept, KMeansSettings
    from mapet.tokenizers.teacher import Features
    from mapet.tokenizers.tokenizer import Tokenizer


def fit_tokenizer(
    data: str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    settings: FitTokenizerSettings | None = None,
    **changes: Any,
) -> "Codebook":
    """Fit a codebook on images and save it in a folder.

    Under torchrun or srun each process reads its share of the images.

    Args:
        data: a folder of images, nested in any way, or ``"cifar10"``.
        out: the tokenizer's folder.
        overwrite: replace the tokenizer in ``out``; only files that mapet wrote are deleted.
        settings: the defaults, without any.
        changes: settings by name, for instance ``teacher="resnet50x64_clip.openai"``.

    Raises:
        MapetError: settings that do not fit, no images, a teacher that is not available or cannot give the
            grid, too few or too many unreadable images, features that are not finite, or too little memory.
    """
    from mapet.engine.distributed import process_group

    s = updated(settings or FitTokenizerSettings(), **changes)
    data, out = absolute_paths("tokenizer fit", data, out)
    if s.tokenizer.path:
        raise MapetError("mapet tokenizer fit makes a tokenizer; remove --tokenizer, or use mapet tokenize.")
    require_inputs_outside(out, data, s.tokenizer)
    _require_free(out, overwrite)
    recipe = s.recipe(data)
    with process_group(s.accelerator) as group, _writing(out) if group.leads else nullcontext():
        group.wait()
        images = ImagePass.open(recipe, s.runtime, out, group, s.batch_size)
        book = fit(recipe, images, out, grid=s.grid or recipe.grid)
        if note := images.unreadable.note():
            log.info(f"note      {note}")
    return book


def fit(
    recipe: Recipe, images: ImagePass, folder: Path, *, grid: tuple[int, int], kept: "Kept | None" = None
) -> "Codebook":
    """Fit the recipe's codebook on ``images`` and save it in ``folder``; ``kept`` receives the features.

    Raises:
        MapetError: a teacher that is not available or cannot give the grid, too few or too many unreadable images,
            features that are not finite, or too little memory.
    """
    from mapet.engine.distributed import pick_device
    from mapet.tokenizers.codebook import Codebook

    teacher, settings, indices = _teacher(recipe, grid), kmeans_settings(recipe), _fit_indices(images.indices, recipe)
    _log_memory(settings, len(indices), teacher, images.group, keeps=kept is not None)
    with StageProgress(show=images.group.leads) as progress:
        book = Codebook.fit(
            teacher,
            lambda part: images.decode(teacher.view, part),
            indices,
            settings,
            device=pick_device(images.runtime.accelerator),
            process_group=images.group,
            progress=progress,
            kept=kept,
        )
    book.provenance["fit_images"] = recipe.tokenizer.fit_images
    images.synchronize()
    if images.group.leads:
        book.save(folder)
    images.group.wait()
    log.info(describe(book))
    log.info(f"fitted    {_summary(book, progress, images.group)}")
    return book


def kmeans_settings(recipe: Recipe) -> "KMeansSettings":
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


def describe(tokenizer: "Tokenizer") -> str:
    """One line about a tokenizer of any kind."""
    from mapet.tokenizers.codebook import Codebook

    (rows, columns), codes = tokenizer.grid, f"{tokenizer.vocabulary} codes"
    if not isinstance(tokenizer, Codebook):
        return f"tokenizer {tokenizer.kind}, {codes} at {rows} × {columns} patches"
    perplexity = tokenizer.provenance.get("perplexity")
    even = "" if perplexity is None else f" (perplexity {perplexity:.0f})"
    return f"codebook  {codes}{even} over {tokenizer.teacher.name} at {rows} × {columns} patches"


def _require_free(out: Path, overwrite: bool) -> None:
    """Refuse a folder that mapet may not write into."""
    from mapet.tokenizers.tokenizer import FIELDS, NEXT, PART

    if (exists := (out / FIELDS).exists()) and not overwrite:
        raise MapetError(f"{out} already holds a tokenizer: choose another --out, or replace it with --overwrite.")
    if exists or is_marked(out, A_TOKENIZER):
        require_ours(out, TOKENIZERS)
    else:
        require_free(out, (PART, NEXT, f"{MARK}.part"))


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Mark the folder; an earlier fit's list of unreadable images is deleted on success and restored on failure.

    ``save`` replaces the earlier tokenizer itself, once the new one is complete.
    """
    put_back(out, LISTS)
    mark(out, A_TOKENIZER)
    if any(out.glob(f"{UNREADABLE}*")):
        put_aside(out, LISTS)
    try:
        yield
    except BaseException:
        put_back(out, LISTS)
        if [path.name for path in out.iterdir()] == [MARK]:
            (out / MARK).unlink()
        raise
    drop(out)
    discard(out / "inspect", TOKENIZER["inspect"] or {})  # what was found of the earlier tokenizer


def _teacher(recipe: Recipe, grid: tuple[int, int]) -> "Features":
    from mapet.tokenizers.teacher import open_teacher

    t = recipe.tokenizer
    return open_teacher(
        t.teacher,
        grid,
        patch_size=recipe.model.patch_size,
        stage=t.teacher_stage,
        output=t.teacher_output,
        weights=Path(t.teacher_weights) if t.teacher_weights else None,
    )


def _fit_indices(indices: "Tensor", recipe: Recipe) -> "Tensor":
    """The images that the codebook is fitted on."""
    from mapet.utils.rng import random_bits

    count = recipe.tokenizer.fit_images or len(indices)
    return indices[random_bits(recipe.seed, 1, indices).argsort(stable=True)[:count].sort().values]


def _log_memory(
    settings: "KMeansSettings", images: int, teacher: "Features", group: ProcessGroup, *, keeps: bool
) -> None:
    from mapet.tokenizers.codebook_fit import KEPT

    patches = images * teacher.grid[0] * teacher.grid[1]
    kept = min(KEPT, 4 * patches * teacher.width // group.count) if keeps else 0
    gib = (settings.footprint(patches, teacher.width, group) + kept) / 2**30
    features = f"{settings.held(patches):,} features of {teacher.width} channels"
    log.info(f"memory    at most {gib:.1f} GiB{' per process' * (group.count > 1)} besides the teacher: {features}")


def _summary(book: "Codebook", progress: StageProgress, group: ProcessGroup) -> str:
    """Objective, codes in use, time, and images per second of all processes together."""
    import torch

    from mapet.engine.progress import clock

    story, read, seconds = book.provenance, progress.done["features"], progress.seconds["features"]
    total = sum(progress.seconds.values())
    if story["mode"] == "stream":
        read, seconds = read + progress.done["k-means"] // (book.grid[0] * book.grid[1]), total
    pace = int(group.sum(torch.tensor([read]))) / max(seconds, 1e-9)
    used = sum(count > 0 for count in story["counts"])
    objective = f"objective {min(story['objective']):.5g}, {len(story['objective']) - 1} iterations"
    return f"{objective}, {used:,} of {book.vocabulary:,} codes in use; {clock(total)}, {pace:,.0f} images/s"
