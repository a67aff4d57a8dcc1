"""Whether a classifier is scored on images that its own fine-tuning was trained on."""

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.utils.errors import MapetError
from mapet.utils.log import log

if TYPE_CHECKING:
    from mapet.data.dataset import ImageDataset


def trained_on(model: Any, source: "ImageDataset") -> int:
    """How many images of a data set the fine-tuning was trained on, which is logged; 0 if that is not known.

    Images are the same if their files are, or their ids in one pack or in CIFAR-10.

    Args:
        model: a fine-tuning, its export in its own folder, or anything else, of which nothing is known.
        source: the images that are scored.
    """
    found = 0
    with suppress(MapetError, OSError):  # data that is not there any more
        found = _common(model, source)
    if found:
        log.info(
            f"note      {found:,} of the {len(source):,} images of {source.name} are training images of {model}: give "
            "images that it has not seen, for instance those that its training held out (scores.json in its folder)"
        )
    return found


def _common(model: Any, source: "ImageDataset") -> int:
    from mapet.build.batches import choose_indices
    from mapet.config.file import read_run
    from mapet.config.finetune import FinetuneRecipe
    from mapet.data.dataset import train_and_test

    recipe = _recipe_of(model)
    if recipe is None:
        return 0
    t = read_run(recipe, FinetuneRecipe)
    scored = [_place(source, i) for i in range(len(source))]
    if not _related(t.data, scored):
        return 0
    train = train_and_test(t.data, max_pixels=t.max_pixels)[0]
    seen = {_place(train, i) for i in choose_indices(train, t.max_images, t.seed).tolist()}
    return sum(place in seen for place in scored)


def _recipe_of(model: Any) -> Path | None:
    """The recipe of the fine-tuning that the model is, or whose folder it is in; None for another."""
    if not isinstance(model, str | Path):
        return None
    path = Path(model).expanduser().absolute()
    folders = (one for one in (path, *path.parents[:2]) if (one / "classifier.json").is_file())
    return next((one / "recipe.yaml" for one in folders), None)


def _place(source: "ImageDataset", i: int) -> str:
    """Where an image is stored."""
    from mapet.data.dataset import base_dataset
    from mapet.data.folder import Folder
    from mapet.data.packed import Packed

    base, (row,) = base_dataset(source, [i])
    if isinstance(base, Folder):
        return os.path.realpath(base.file(row))
    return f"{base.original if isinstance(base, Packed) else base.name}/{base.image_id(row)}"


def _related(data: str, places: list[str]) -> bool:
    """Whether some of the images may be training images, which need not be listed otherwise."""
    from mapet.data.dataset import NAMED, has_held_out
    from mapet.data.packed import packed_splits

    root = Path(data).expanduser()
    if data in NAMED or packed_splits(root):
        return True
    top = os.path.realpath(root / "train" if has_held_out(data) else root)
    return any(place.startswith(f"{top}{os.sep}") for place in places)
