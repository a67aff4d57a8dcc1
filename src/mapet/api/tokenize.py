"""``mapet tokenize``: one visual token per patch for every image, on disk."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.api.fit_tokenizer import describe, fit, fitting
from mapet.api.images import BATCH, ImagePass, require_free
from mapet.config.recipe import Recipe, Runtime, Tokenizer, diff
from mapet.engine.stages import Stages
from mapet.utils.errors import MapetError
from mapet.utils.log import say
from mapet.utils.process_group import SINGLE_PROCESS, ProcessGroup

if TYPE_CHECKING:
    from torch import Tensor

    from mapet.data.dataset import ImageDataset
    from mapet.data.unreadable import UnreadableImages
    from mapet.tokenizers.store import TokenStore
    from mapet.tokenizers.tokenizer import Tokenizer as AnyTokenizer
    from mapet.utils.lock import Lock


LOOKED_UP = 1 << 16  # keys that are looked for in the store at a time


def require_one_way(asked: Tokenizer, default: Tokenizer, **folders: str | None) -> None:
    """Refuse settings of a fit beside what is ready, on which they would have no effect.

    Args:
        asked: what was asked for.
        default: what holds without a word.
        folders: what is ready, by the option that names it; nothing is where none is given.
    """
    ready = next((option for option, folder in folders.items() if folder), None)
    own = {"path", "teacher_weights"} if ready == "tokenizer" else {"path"}  # its teacher may need them
    if ready and (names := [name for name in diff(asked, default) if name not in own]):
        option = names[0].replace("_", "-")
        raise MapetError(
            f"--{option} is for a codebook that is fitted, not for what --{ready} names: leave one of them out."
        )


def tokenize(
    recipe: Recipe,
    out: Path,
    runtime: Runtime,
    *,
    say: Callable[[str], None] = say,
    process_group: ProcessGroup = SINGLE_PROCESS,
    batch_size: int = BATCH,
) -> "TokenStore":
    """Write the tokens of the recipe's images into the folder ``out``, or continue there.

    The tokenizer is the recipe's, or a codebook that is fitted into ``out/tokenizer``. Images that cannot be read are
    listed in ``out/unreadable-images.txt``.

    Args:
        recipe: names images and tokenizer.
        out: may hold what an interrupted call left.
        machine: how images are read.
        say: is told each line for the screen.
        crew: the processes, each of which calls this.
        batch_size: images that the tokenizer sees at a time.

    Raises:
        MapetError: no images, a teacher that cannot give the recipe's grid, too many bad images, other tokens.
    """
    from mapet.engine.distributed import pick_device
    from mapet.engine.progress import clock
    from mapet.tokenizers.store import WRITING, TokenStore
    from mapet.utils.lock import Lock

    image_pass = ImagePass.of(recipe, runtime, out, process_group, batch_size)
    if process_group.leads:
        require_free(out)
    out.mkdir(parents=True, exist_ok=True)
    with (
        Lock(out, WRITING) if process_group.leads else nullcontext() as lock,
        Stages(shown=process_group.leads) as stages,
    ):
        tokenizer = _tokenizer(recipe, out, image_pass, say)
        store = _opened(out, tokenizer, image_pass, lock)
        count = encode(tokenizer.to(pick_device(runtime.accelerator)), store, image_pass, stages)
    if seconds := stages.seconds["tokens"]:
        say(f"tokens    {count:,} images in {clock(seconds)}, {count / seconds:,.0f} images/s")
    if note := image_pass.bad.note():
        say(f"note      {note}")
    return TokenStore.open(out)


def _tokenizer(recipe: Recipe, out: Path, image_pass: ImagePass, say: Callable[[str], None]) -> "AnyTokenizer":
    """The recipe's tokenizer, or the codebook in ``out``, which is fitted there if need be."""
    from mapet.data.decode import require_shown
    from mapet.tokenizers.tokenizer import load_tokenizer

    own, named = out / "tokenizer", recipe.tokenizer.path
    if not named and not _there(own, image_pass.process_group):
        fit(recipe, image_pass, own, grid=recipe.grid, say=say)
    folder = Path(named or own)
    tokenizer = load_tokenizer(folder, teacher_weights=recipe.tokenizer.teacher_weights)
    _require_fitting(tokenizer, folder, recipe)
    require_shown(image_pass.source, [tokenizer.view])
    say(_line(tokenizer))
    return tokenizer


def fit_codebook(
    recipe: Recipe, folder: Path, runtime: Runtime, source: "ImageDataset", indices: "Tensor", bad: "UnreadableImages"
) -> None:
    """Fit the recipe's codebook on its images and save it in ``folder``, by one process."""
    fit(recipe, ImagePass(source, indices, runtime, bad), folder, grid=recipe.grid)


def encode(tokenizer: "AnyTokenizer", store: "TokenStore", image_pass: ImagePass, stages: Stages) -> int:
    """Write the tokens of all images that the store lacks, and give their number over all processes.

    Several processes append each to a part of its own, and the first brings the parts together in the end.
    """
    import torch

    from mapet.data.augment import to_float
    from mapet.engine.distributed import pick_device
    from mapet.tokenizers.parts import merge, part_of

    process_group, source, device = (
        image_pass.process_group,
        image_pass.source,
        pick_device(image_pass.runtime.accelerator),
    )
    mine = process_group.share(_lacking(store, image_pass))
    target, done = part_of(store, process_group.rank) if process_group.count > 1 else store, 0
    for images, index in image_pass.decoded(tokenizer.view, mine):
        tokens = tokenizer.encode(to_float(images, device))
        target.append([source.image_id(place) for place in index.tolist()], tokens)
        done += len(index)
        stages("tokens", done, len(mine))
    if target is not store:
        target.release()
    image_pass.settle()
    if process_group.leads:
        merge(store)
        image_pass.bad.forget(store.__contains__)
        _require_complete(store, image_pass)
    return int(process_group.sum(torch.tensor([done])))


def _opened(out: Path, tokenizer: "AnyTokenizer", image_pass: ImagePass, lock: "Lock | None") -> "TokenStore":
    """The new store, or this tokenizer's that was begun, with what an interrupted call left in parts.

    The first process writes there, by the folder's ``lock``.
    """
    from mapet.tokenizers.parts import merge
    from mapet.tokenizers.store import TokenStore

    if image_pass.process_group.leads:
        store = TokenStore.create(
            out,
            view=tokenizer.view,
            grid=tokenizer.grid,
            vocabulary=tokenizer.vocabulary,
            tokenizer=tokenizer.hash,
            extra={"data": image_pass.source.name},
        )
        store.reserve(lock)
        merge(store)
    image_pass.settle()
    return store if image_pass.process_group.leads else TokenStore.open(out)


def _lacking(store: "TokenStore", image_pass: ImagePass) -> "Tensor":
    """The places of the images without tokens."""
    import torch

    key = image_pass.source.image_id
    parts = [
        part[torch.from_numpy(store.missing([key(place) for place in part.tolist()]))]
        for part in torch.split(image_pass.indices, LOOKED_UP)
    ]
    return torch.cat(parts)


def _require_complete(store: "TokenStore", image_pass: ImagePass) -> None:
    """Every image has its tokens or is listed as bad; processes that saw different stores would leave holes."""
    lacking = _lacking(store, image_pass).tolist()
    if left := [place for place in lacking if image_pass.source.image_id(place) not in image_pass.bad]:
        raise MapetError(
            f'{len(left)} images have no tokens yet, for instance "{image_pass.source.image_id(left[0])}": the '
            "processes did not see the same folder. Give the same command again."
        )


def _there(folder: Path, process_group: ProcessGroup) -> bool:
    """Whether the first process finds a tokenizer in ``folder``; what it finds holds for all."""
    import torch

    from mapet.tokenizers.tokenizer import FIELDS

    return bool(process_group.sum(torch.tensor([process_group.leads and (folder / FIELDS).exists()]).long()))


def _line(tokenizer: "AnyTokenizer") -> str:
    """One line about a tokenizer of any kind."""
    from mapet.tokenizers.codebook import Codebook

    if isinstance(tokenizer, Codebook):
        return describe(tokenizer)
    (rows, columns), kind = tokenizer.grid, tokenizer.kind
    return f"tokenizer {kind}, {tokenizer.vocabulary} codes at {rows} × {columns} patches"


def _require_fitting(tokenizer: "AnyTokenizer", folder: Path, recipe: Recipe) -> None:
    """Refuse a tokenizer that is not what the settings ask for; of one that was named, only grid and crop are asked."""
    from dataclasses import asdict

    from mapet.build.batches import require_fitting
    from mapet.tokenizers.codebook import Codebook
    from mapet.tokenizers.timm_backbone import exported

    if recipe.tokenizer.path or not isinstance(tokenizer, Codebook):
        require_fitting(tokenizer, folder, recipe)
        return
    t, teacher, story = recipe.tokenizer, tokenizer.teacher, tokenizer.provenance
    asked = {"grid": recipe.grid, "teacher": str(exported(t.teacher) or t.teacher), **asdict(fitting(recipe))}
    asked |= {"teacher_stage": t.teacher_stage, "teacher_output": t.teacher_output, "fit_images": t.fit_images}
    found = {**story, "grid": tokenizer.grid, "teacher": teacher.source, "samples": story.get("asked_samples")}
    found["teacher_stage"] = None if t.teacher_stage is None else teacher.stage
    found["teacher_output"] = teacher.describe().get("output", "stage")
    for name, value in asked.items():
        if found.get(name) != value:
            raise MapetError(
                f"The tokenizer in {folder} has {name} {found.get(name)}, and {value} is asked for: "
                "give another --out, or the settings that it was made with."
            )
