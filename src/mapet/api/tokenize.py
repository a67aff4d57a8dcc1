"""Tokenize images: one visual token per patch of every image, on disk."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.api.fit_tokenizer import describe, fit
from mapet.api.images import UNREADABLE, ImagePass, absolute_paths, require_inputs_outside
from mapet.api.tokenize_inputs import begun_with, same_images
from mapet.config.flat import diff, updated
from mapet.config.recipe import Recipe, Runtime, Tokenizer
from mapet.config.verbs import BATCH_SIZE, TokenizeSettings
from mapet.engine.stages import StageProgress
from mapet.utils.errors import MapetError
from mapet.utils.log import log
from mapet.utils.process_group import SINGLE_PROCESS, ProcessGroup

if TYPE_CHECKING:
    from torch import Tensor

    from mapet.data.dataset import ImageDataset
    from mapet.data.unreadable import UnreadableImages
    from mapet.tokenizers.codebook import Codebook
    from mapet.tokenizers.codebook_fit import Kept
    from mapet.tokenizers.store import TokenStore
    from mapet.tokenizers.tokenizer import Tokenizer as AnyTokenizer
    from mapet.utils.lock import Lock

LOOKUP = 1 << 16  # image ids looked up in the store at a time
KMEANS = {  # settings of a fit, and their names in the provenance of a codebook
    "vocab_size": ("codes",),
    "samples": ("asked_samples",),
    "iterations": ("iterations",),
    "restarts": ("restarts",),
    "kmeans_init": ("start",),
    "metric": ("metric",),
    "kmeans_mode": ("mode",),
    "kmeans_precision": ("precision",),
    "fit_images": ("fit_images", "fit_pictures"),  # the second by version 0.1
}


def tokenize(
    data: str | Path,
    out: str | Path,
    tokenizer: str | Path | None = None,
    *,
    settings: TokenizeSettings | None = None,
    **changes: Any,
) -> "TokenStore":
    """Write the tokens of all images into a folder, or continue an interrupted call there.

    Images that cannot be read are listed in ``out/unreadable-images.txt``. Under torchrun or srun each process
    tokenizes its share of the images.

    Args:
        data: a folder of images, nested in any way or packed by ``pack``, or ``"cifar10"``.
        out: the tokens' folder.
        tokenizer: folder of a ready tokenizer; None: a codebook is fitted in ``out/tokenizer``.
        settings: the defaults, without any.
        changes: settings by name, for instance ``image_size=192``.

    Raises:
        MapetError: settings that do not fit, no images, a teacher that cannot give the grid, too many unreadable
            images, or a folder with other tokens.
    """
    from mapet.engine.distributed import process_group

    s = updated(settings or TokenizeSettings(), **changes)
    if tokenizer is not None:
        s = updated(s, tokenizer=tokenizer)
    data, out = absolute_paths("tokenize", data, out)
    require_one_way(s.tokenizer, Tokenizer(), tokenizer=s.tokenizer.path)
    require_inputs_outside(out, data, s.tokenizer)
    with process_group(s.accelerator) as group:
        return write_tokens(s.recipe(data), out, s.runtime, group=group, batch_size=s.batch_size)


def require_one_way(t: Tokenizer, default: Tokenizer, **ready: str | None) -> None:
    """Refuse settings that only apply to fitting a codebook where ready tokens or a ready tokenizer are named.

    Args:
        t: the settings.
        default: settings that count as not given.
        ready: folders by the options that name them; None for an option that is not given.

    Raises:
        MapetError: the setting and the option that rules it out.
    """
    option = next((name for name, folder in ready.items() if folder), None)
    allowed = {"path", "teacher_weights"} if option == "tokenizer" else {"path"}  # its teacher may need them
    if option and (names := [name for name in diff(t, default) if name not in allowed]):
        setting = names[0].replace("_", "-")
        raise MapetError(f"--{setting} only applies when a codebook is fitted; remove it, or remove --{option}.")


def write_tokens(
    recipe: Recipe,
    out: Path,
    runtime: Runtime,
    *,
    group: ProcessGroup = SINGLE_PROCESS,
    batch_size: int = BATCH_SIZE,
) -> "TokenStore":
    """Write the tokens of the recipe's images into the folder ``out``, or continue there.

    The tokenizer is the recipe's, or a codebook that is fitted in ``out/tokenizer``.

    Args:
        recipe: names images and tokenizer.
        out: may hold the result of an interrupted call.
        runtime: how images are read.
        group: the processes, each of which calls this.
        batch_size: images that the tokenizer sees at a time.

    Raises:
        MapetError: as ``tokenize``.
    """
    from mapet.engine.distributed import pick_device
    from mapet.engine.progress import clock
    from mapet.tokenizers.codebook_fit import Kept
    from mapet.tokenizers.store import WRITING, TokenStore
    from mapet.utils.lock import Lock

    images, kept = ImagePass.open(recipe, runtime, out, group, batch_size), Kept()
    if group.leads:
        _require_free(out)
    out.mkdir(parents=True, exist_ok=True)
    with Lock(out, WRITING) if group.leads else nullcontext() as lock, StageProgress(show=group.leads) as progress:
        tokenizer = _tokenizer(recipe, out, images, kept)
        store = _store(out, tokenizer, images, lock, recipe.draft)
        images = same_images(images, store)
        count = _encode_missing(tokenizer.to(pick_device(runtime.accelerator)), store, images, kept, progress)
    if seconds := progress.seconds["tokens"]:
        log.info(f"tokens    {count:,} images in {clock(seconds)}, {count / seconds:,.0f} images/s")
    if note := images.unreadable.note():
        log.info(f"note      {note}")
    return TokenStore.open(out)


def fit_codebook(
    recipe: Recipe,
    folder: Path,
    runtime: Runtime,
    source: "ImageDataset",
    indices: "Tensor",
    unreadable: "UnreadableImages",
) -> None:
    """Fit the recipe's codebook on its images and save it in ``folder``, by one process."""
    fit(recipe, ImagePass(source, indices, runtime, unreadable), folder, grid=recipe.grid)


def _require_free(folder: Path) -> None:
    """Refuse a folder that neither holds tokens nor was begun for them.

    Raises:
        MapetError: what it holds.
    """
    from mapet.tokenizers.store import HEADER, KEYS, SUMS, TOKENS
    from mapet.tokenizers.tokenizer import PART
    from mapet.utils.io import require_free

    if not (folder / HEADER).exists() and not (folder / "tokenizer").exists():
        ours = (f"{HEADER}.part", KEYS, SUMS, TOKENS, f"tokenizer.{PART}")
        require_free(folder, (*ours, *(path.name for path in folder.glob(f"{UNREADABLE}*"))))


def _tokenizer(recipe: Recipe, out: Path, images: ImagePass, kept: "Kept") -> "AnyTokenizer":
    """The recipe's tokenizer, or the codebook in ``out``, which is fitted first if necessary: ``kept`` has features."""
    from mapet.data.decode import require_shown
    from mapet.tokenizers.tokenizer import load_tokenizer

    fitted, named = out / "tokenizer", recipe.tokenizer.path
    if not named and not _exists(fitted, images.group):
        fit(recipe, images, fitted, grid=recipe.grid, kept=kept)
    folder = Path(named or fitted)
    tokenizer = load_tokenizer(folder, teacher_weights=recipe.tokenizer.teacher_weights)
    _require_as_asked(tokenizer, folder, recipe)
    require_shown(images.source, [tokenizer.view])
    log.info(describe(tokenizer))
    return tokenizer


def _store(
    out: Path, tokenizer: "AnyTokenizer", images: ImagePass, lock: "Lock | None", draft: int | None
) -> "TokenStore":
    """A new store, or the one begun with this tokenizer, into which rank 0 moves the parts of an interrupted call."""
    from mapet.tokenizers.parts import merge
    from mapet.tokenizers.store import TokenStore

    if images.group.leads:
        store = TokenStore.create(
            out,
            view=tokenizer.view,
            grid=tokenizer.grid,
            vocabulary=tokenizer.vocabulary,
            tokenizer=tokenizer.hash,
            extra={"data": begun_with(out, images.source.name), **({"draft": draft} if draft else {})},
        )
        store.reserve(lock)
        merge(store)
    images.group.wait()
    return store if images.group.leads else TokenStore.open(out)


def _encode_missing(
    tokenizer: "AnyTokenizer", store: "TokenStore", images: ImagePass, kept: "Kept", progress: StageProgress
) -> int:
    """Write the tokens that the store lacks, and return the number of images over all processes.

    Several processes each append to a part; rank 0 merges the parts at the end.
    """
    import torch

    from mapet.api.token_batches import token_batches
    from mapet.tokenizers.parts import merge, part_of

    group, source = images.group, images.source
    missing = group.share(_missing(store, images))
    target, done = part_of(store, group.rank) if group.count > 1 else store, 0
    for tokens, indices in token_batches(tokenizer, images, missing, kept):
        target.append([source.image_id(index) for index in indices.tolist()], tokens)
        done += len(indices)
        progress("tokens", done, len(missing))
    if target is not store:
        target.release()
    images.synchronize()
    if group.leads:
        merge(store)
        images.unreadable.forget(store.__contains__)
        _require_complete(store, images)
    return int(group.sum(torch.tensor([done])))


def _missing(store: "TokenStore", images: ImagePass) -> "Tensor":
    """The indices of the images without tokens."""
    import torch

    image_id = images.source.image_id
    parts = [
        part[torch.from_numpy(store.missing([image_id(index) for index in part.tolist()]))]
        for part in torch.split(images.indices, LOOKUP)
    ]
    return torch.cat(parts)


def _require_complete(store: "TokenStore", images: ImagePass) -> None:
    """Every image has its tokens or is listed as unreadable, unless the processes saw different stores."""
    missing = [images.source.image_id(index) for index in _missing(store, images).tolist()]
    if left := [image_id for image_id in missing if image_id not in images.unreadable]:
        raise MapetError(
            f'{len(left)} images have no tokens, for instance "{left[0]}": the processes did not see the same folder. '
            "Run the same command again."
        )


def _exists(folder: Path, group: ProcessGroup) -> bool:
    """Whether rank 0 finds a tokenizer in ``folder``, the same on all processes."""
    import torch

    from mapet.tokenizers.tokenizer import FIELDS

    return bool(group.sum(torch.tensor([group.leads and (folder / FIELDS).exists()]).long()))


def _require_as_asked(tokenizer: "AnyTokenizer", folder: Path, recipe: Recipe) -> None:
    """Refuse a tokenizer that does not fit the recipe: a named one by grid and crop, a fitted one by all settings."""
    from mapet.build.batches import require_fitting
    from mapet.tokenizers.codebook import Codebook

    if recipe.tokenizer.path or not isinstance(tokenizer, Codebook):
        require_fitting(tokenizer, folder, recipe)
        return
    fitted = _fitted_with(tokenizer, recipe)
    for name, value in _asked(recipe).items():
        if fitted[name] != value:
            raise MapetError(
                f"The tokenizer in {folder} was fitted with {name} {fitted[name]}, not {value}: "
                "choose another --out, or use the settings that it was fitted with."
            )


def _asked(recipe: Recipe) -> dict[str, Any]:
    """The recipe's settings of a codebook."""
    from mapet.tokenizers.timm_backbone import exported

    t = recipe.tokenizer
    asked = {"grid": recipe.grid, "teacher": str(exported(t.teacher) or t.teacher), "seed": recipe.seed}
    return asked | {name: getattr(t, name) for name in (*KMEANS, "teacher_stage", "teacher_output")}


def _fitted_with(book: "Codebook", recipe: Recipe) -> dict[str, Any]:
    """The settings that a codebook was fitted with, by the same names; of a default stage the recipe's None."""
    story, teacher = book.provenance, book.teacher
    found = {name: next((story[key] for key in keys if key in story), None) for name, keys in KMEANS.items()}
    found |= {"grid": book.grid, "teacher": teacher.source, "seed": story.get("seed")}
    found["teacher_stage"] = None if recipe.tokenizer.teacher_stage is None else teacher.stage
    found["teacher_output"] = teacher.describe().get("output", "stage")
    return found
