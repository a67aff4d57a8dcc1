"""A checkpoint file in any published format → its encoder; the formats are told apart by tensors that only one has."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mapet.interop.competitors import load_beit, load_cae, load_mae
from mapet.interop.fitting import VIT, dimensions, fitting, part
from mapet.interop.official import load_finetuned, load_pretraining
from mapet.method.encoder import Encoder
from mapet.utils.weights import extent, fill, read_weights

LOADERS: dict[str, tuple[Callable[..., Any], dict[str, int]]] = {
    "mask_positional_token": (load_pretraining, {}),
    "lm_head.weight": (load_beit, {}),
    "decoder_embed.weight": (load_mae, {"decoder_heads": 1}),  # the decoder is thrown away
    "pretext_neck.head.weight": (load_cae, {"decoder_heads": 1}),
}


def load_checkpoint_encoder(path: Path, *, heads: int | None = None) -> Encoder:
    """The encoder of a square-image checkpoint by MaPeT, BEiT, MAE or CAE, or of plain timm names.

    Args:
        path: the file, read with the weights-only loader.
        heads: attention heads; the tensors do not tell. By default width / 64, as in all published sizes.

    Returns:
        A ``Classifier`` where the file holds a fine-tuned head, else an ``Encoder``.

    Raises:
        MapetError: no such file, none of these formats, or tensors or heads that do not fit.
    """
    weights = read_weights(path)
    if "head.weight" in weights:
        with fitting():
            return load_finetuned(path, heads=heads)
    settings = _sizes(part(weights, "encoder.") or weights, heads)
    for name, (load, more) in LOADERS.items():
        if name in weights:
            encoder: Encoder = load(weights, **settings, **more, context=2).encoder
            return encoder
    with fitting():
        plain = Encoder(
            settings["image_size"], settings["patch_size"], num_heads=settings["heads"], **dimensions(weights)
        )
    fill(plain, weights, VIT)
    return plain


def _sizes(weights: Mapping[str, Tensor], heads: int | None) -> dict[str, int]:
    width, patch = (extent(weights, "patch_embed.proj.weight", VIT, axis) for axis in (0, 2))
    side = round((extent(weights, "pos_embed", VIT, 1) - 1) ** 0.5)
    return {"image_size": side * patch, "patch_size": patch, "heads": heads or max(1, width // 64)}
