"""Import a tokenizer: published weights into a tokenizer's folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.api.images import absolute
from mapet.config.flat import updated
from mapet.config.verbs import ImportTokenizerSettings
from mapet.utils.errors import MapetError, nearest
from mapet.utils.owned import require_apart
from mapet.utils.versions import versions

if TYPE_CHECKING:
    from torch import Tensor

    from mapet.tokenizers.tokenizer import Network

IMAGE_SIZE = {"dalle": 112, "vqgan": 224, "vqkd": 224}  # of each kind, where none is given


def import_tokenizer(
    file: str | Path, out: str | Path, kind: str, *, settings: ImportTokenizerSettings | None = None, **changes: Any
) -> "Network":
    """Write the tokenizer whose weights are in a file into a new or empty folder.

    Args:
        file: published weights (.safetensors, .pth, .pkl or .ckpt).
        out: the tokenizer's folder.
        kind: ``"dalle"``, ``"vqgan"`` (of taming-transformers) or ``"vqkd"`` (of BEiT v2).
        settings: the defaults, without any.
        changes: settings by name: ``image_size``, ``patch_size``, ``heads``.

    Raises:
        MapetError: another kind, a folder in use, a file without such weights, or an image size that does not fit.
    """
    from mapet.utils.io import require_free
    from mapet.utils.weights import read_weights

    s = updated(settings or ImportTokenizerSettings(), **changes)
    if not (str(file) and kind and str(out)):
        raise MapetError("mapet tokenizer import needs one FILE, --kind and --out FOLDER.")
    if kind not in IMAGE_SIZE:
        raise MapetError(f'There is no --kind "{kind}".{nearest(kind, IMAGE_SIZE)}')
    file, out = Path(file).expanduser(), absolute(out)
    require_apart(out, FILE=file)
    require_free(out)
    weights = read_weights(file)
    try:
        network = _network(weights, kind, s)
    except MapetError as error:
        raise MapetError(f"{file}: {error.option_text}") from None
    network.provenance = {"file": file.name, "versions": versions(("mapet", "torch"))}
    network.save(out)
    return network


def _network(weights: "Mapping[str, Tensor]", kind: str, s: ImportTokenizerSettings) -> "Network":
    size = IMAGE_SIZE[kind] if s.image_size is None else s.image_size
    if kind == "dalle":
        from mapet.tokenizers.dalle import DalleEncoder

        return DalleEncoder.from_openai(weights, image_size=size)
    if kind == "vqgan":
        from mapet.tokenizers.vqgan import VQGAN

        return VQGAN.from_taming(weights, image_size=size)
    from mapet.tokenizers.vqkd import VQKD

    return VQKD.from_beit2(weights, image_size=size, patch_size=s.patch_size, heads=s.heads)
