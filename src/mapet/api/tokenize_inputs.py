"""The images of a token store that is continued: those that it was begun with, wherever they lie now."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.api.images import ImagePass
from mapet.utils.errors import MapetError
from mapet.utils.io import load_json, replace_file
from mapet.utils.log import log

if TYPE_CHECKING:
    from mapet.data.dataset import ImageDataset
    from mapet.tokenizers.store import TokenStore


def begun_with(out: Path, name: str) -> str:
    """The name of the dataset that the tokens in ``out`` were begun with; ``name`` if there are none."""
    header = load_json(out / "store.json")
    extra = header.get("extra") if isinstance(header, dict) else None
    return str(extra["data"]) if isinstance(extra, dict) and "data" in extra else name


def same_images(images: ImagePass, store: "TokenStore") -> ImagePass:
    """The images under the ids by which the store knows them; on rank 0 a new store notes a sample of their contents.

    Raises:
        MapetError: the store was begun with others.
    """
    from mapet.build.known_ids import made_from, recorded, under_known_ids
    from mapet.data.contents import FILE, sample

    source, made = under_known_ids(images.source, store), made_from(store)
    if source.name != made:
        if reason := _difference(source, store):
            raise MapetError(
                f"{store.folder} holds tokens of {made}, not of {source.name} ({reason}): choose another folder, or "
                "give the images that the tokens were made from."
            )
        log.info(f"moved     {made} → {source.name}: their names and a sample of their contents agree")
    elif images.group.leads and not recorded(store):
        replace_file(store.folder / FILE, json.dumps(sample(source, images.indices), indent=1) + "\n")
    return replace(images, source=source)


def _difference(source: "ImageDataset", store: "TokenStore") -> str:
    """How images that lie elsewhere differ from those of the store; "" if names and contents agree."""
    from mapet.build.known_ids import matches, other_contents, recorded

    count = matches(source, store, at_least=float("inf"))
    if count not in (len(source), len(store)):
        return f"it has {count:,} of the {len(store):,} images that have tokens"
    if not (known := recorded(store)) or not any(source.image_id(i) in known for i in range(len(source))):
        return "nothing shows that they are the same: no contents are recorded"
    return other_contents(source, store)
