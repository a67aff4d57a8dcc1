"""Load the encoder of a checkpoint file in any published format; formats are recognised by their tensors' names."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mapet.interop.competitors import load_beit, load_cae, load_mae
from mapet.interop.official import load_finetuned, load_pretraining
from mapet.interop.state_dict import VIT, default_heads, encoder_settings, settings_errors, strip_prefix
from mapet.method.encoder import Encoder
from mapet.utils.weights import extent, fill, read_weights

# A tensor that only this format has → its loader and further arguments.
LOADERS: dict[str, tuple[Callable[..., Any], dict[str, int]]] = {
    "mask_positional_token": (load_pretraining, {}),
    "lm_head.weight": (load_beit, {}),
    "decoder_embed.weight": (load_mae, {"decoder_heads": 1}),  # any value: the decoder is discarded
    "pretext_neck.head.weight": (load_cae, {"decoder_heads": 1}),
}


def load_checkpoint_encoder(path: Path, *, heads: int | None = None) -> Encoder:
    """Return the encoder of a checkpoint by MaPeT, BEiT, MAE or CAE for square images, or with timm's names.

    Args:
        path: the file, read with the weights-only loader.
        heads: number of attention heads, which checkpoints do not store; default: width / 64, as published.

    Returns:
        A ``Classifier`` if the file has a fine-tuned head, else an ``Encoder``.

    Raises:
        MapetError: the file is missing or in none of these formats, or tensors or ``heads`` do not fit.
    """
    weights = read_weights(path)
    if "head.weight" in weights:
        with settings_errors():
            return load_finetuned(path, heads=heads)
    settings = _sizes(strip_prefix(weights, "encoder.") or weights, heads)
    for name, (load, more) in LOADERS.items():
        if name in weights:
            encoder: Encoder = load(weights, **settings, **more, context=2).encoder
            return encoder
    with settings_errors():
        plain = Encoder(
            settings["image_size"], settings["patch_size"], num_heads=settings["heads"], **encoder_settings(weights)
        )
    fill(plain, weights, VIT)
    return plain


def _sizes(weights: Mapping[str, Tensor], heads: int | None) -> dict[str, int]:
    width, patch = (extent(weights, "patch_embed.proj.weight", VIT, axis) for axis in (0, 2))
    side = round((extent(weights, "pos_embed", VIT, 1) - 1) ** 0.5)
    return {"image_size": side * patch, "patch_size": patch, "heads": heads or default_heads(width)}
