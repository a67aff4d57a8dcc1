"""``mapet tokenizer import``: a tokenizer's folder from the weights that others published."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.utils.errors import MapetError
from mapet.utils.owned import require_apart
from mapet.utils.versions import versions

if TYPE_CHECKING:
    from torch import Tensor

    from mapet.tokenizers.tokenizer import Network


IMAGE_SIZE = {"dalle": 112, "vqgan": 224, "vqkd": 224}


@dataclass(frozen=True)
class Options:
    """Options of ``mapet tokenizer import FILE``."""

    kind: str = ""
    """dalle, vqgan (of taming-transformers) or vqkd (of BEiT v2)."""
    out: str = ""
    """Folder to write."""
    image_size: int | None = None
    """Side of its images in pixels; None: 112 for dalle, else 224 (a vqgan f8 needs 112 for 14 x 14 tokens)."""
    patch_size: int = 16
    """Side of its patches in pixels; for vqkd, the others' is in the weights."""
    heads: int = 12
    """Attention heads, for vqkd."""


def import_weights(file: Path, out: Path, options: Options) -> "Network":
    """Write the tokenizer that ``file`` holds the weights of into the new or empty folder ``out``.

    Raises:
        MapetError: a folder in use, a file that is not weights, other weights, an image size that does not fit.
    """
    from mapet.utils.io import require_free
    from mapet.utils.weights import read_weights

    require_apart(out, FILE=file)
    require_free(out)
    weights = read_weights(file)
    try:
        network = build(weights, options)
    except MapetError as error:
        raise MapetError(f"{file}: {error.option_text}") from None
    network.provenance = {"file": file.name, "versions": versions(("mapet", "torch"))}
    network.save(out)
    return network


def build(weights: "Mapping[str, Tensor]", options: Options) -> "Network":
    """The network of ``options.kind`` with these weights."""
    size = IMAGE_SIZE[options.kind] if options.image_size is None else options.image_size
    if options.kind == "dalle":
        from mapet.tokenizers.dalle import DalleEncoder

        return DalleEncoder.from_openai(weights, image_size=size)
    if options.kind == "vqgan":
        from mapet.tokenizers.vqgan import VQGAN

        return VQGAN.from_taming(weights, image_size=size)
    from mapet.tokenizers.vqkd import VQKD

    return VQKD.from_beit2(weights, image_size=size, patch_size=options.patch_size, heads=options.heads)
