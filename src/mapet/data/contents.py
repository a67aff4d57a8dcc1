"""A sample of what images hold: whether images that lie elsewhere now are the same."""

from collections.abc import Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from mapet.data.dataset import ImageDataset, base_dataset
from mapet.data.folder import Folder
from mapet.data.image import UnreadableImage
from mapet.data.packed import Packed

if TYPE_CHECKING:
    from torch import Tensor

FILE = "contents.json"  # of a run, and of a token store
SAMPLED = 16  # images


def sample(source: ImageDataset, indices: "Tensor") -> dict[str, str]:
    """The hashes of up to ``SAMPLED`` evenly spaced images, by image id.

    Args:
        source: of the images.
        indices: (N,) int64, the images in it that are used.
    """
    every = max(1, -(-len(indices) // SAMPLED))
    return {source.image_id(i): content_hash(source, i) for i in indices[::every].tolist()}


def content_hash(source: ImageDataset, i: int) -> str:
    """A kind, and the hash of what is stored of image ``i``: "file:…" of an image file; "" if that is unreadable.

    Images of packs hash as they are packed, those of other datasets as pixels; kinds cannot be compared.
    """
    base, (row,) = base_dataset(source, [i])
    try:
        if isinstance(base, Folder | Packed):
            kind, content = base.content(row)
        else:
            kind, content = "pixels", np.asarray(base.read(row)).tobytes()
    except (OSError, UnreadableImage):
        return ""
    return f"{kind}:{blake2b(content, digest_size=16).hexdigest()}"


def differences(source: ImageDataset, recorded: Mapping[str, str]) -> list[str]:
    """What differs between recorded images and those of the source with their ids, a few words for each.

    An image that cannot be read any more is left out, as in training, and so is one that the source does not have.
    """
    found: list[str] = []
    for i in range(len(source)) if recorded else ():
        was = recorded.get(image_id := source.image_id(i), "")
        if not was or not (now := content_hash(source, i)) or now == was:
            continue
        kinds = [text.partition(":")[0] for text in (was, now)]
        if kinds[0] != kinds[1]:
            return [f"its images are stored as {kinds[1]}, not as {kinds[0]}"]
        if _readable(source, i):
            found.append(f'its image "{image_id}" has another content')
    return found


def _readable(source: ImageDataset, i: int) -> bool:
    try:
        source.read(i)
    except UnreadableImage:
        return False
    return True
