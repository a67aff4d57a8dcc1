"""Load the encoder of a checkpoint file in any published format; formats are recognised by their tensors' names."""

from collections.abc import Callable, Mapping
from math import isqrt
from pathlib import Path
from typing import Any

from torch import Tensor

from mapet.interop.competitors import load_beit, load_cae, load_mae
from mapet.interop.foreign import held, require_known
from mapet.interop.official import load_finetuned, load_pretraining
from mapet.interop.state_dict import VIT, default_heads, encoder_settings, settings_errors, strip_prefix
from mapet.method.encoder import Encoder
from mapet.utils.errors import MapetError
from mapet.utils.weights import count, extent, fill, read_weights

TINY, SMALL = 192, 384  # widths of ViT-T and ViT-S
# A tensor that only this format has → its loader and further arguments.
LOADERS: dict[str, tuple[Callable[..., Any], dict[str, int]]] = {
    "mask_positional_token": (load_pretraining, {}),
    "lm_head.weight": (load_beit, {}),
    "decoder_embed.weight": (load_mae, {"decoder_heads": 1}),  # any value: the decoder is discarded
    "pretext_neck.head.weight": (load_cae, {"decoder_heads": 1}),
}


def load_checkpoint_encoder(path: Path, *, heads: int | None = None) -> Encoder:
    """Return the encoder of a checkpoint; arguments and errors as those of ``open_checkpoint``."""
    return open_checkpoint(path, heads=heads)[0]


def open_checkpoint(path: Path, *, heads: int | None = None) -> tuple[Encoder, list[str]]:
    """Return the encoder of a checkpoint by MaPeT, BEiT, MAE or CAE for square images, or with timm's names.

    Args:
        path: the file, read with the weights-only loader.
        heads: number of attention heads, which checkpoints do not store; default: width / 64, as published, or the 12
            of CAE-S and MAE-Lite if the file has their layout.

    Returns:
        A ``Classifier`` if the file has a fine-tuned head, else an ``Encoder``; and what had to be assumed, in words.

    Raises:
        MapetError: the file is missing or in none of these formats, or tensors or ``heads`` do not fit.
    """
    weights = _bare(read_weights(path))
    require_known(path, weights)
    if "patch_embed.proj.weight" not in (strip_prefix(weights, "encoder.") or weights):
        raise MapetError(f"{path} is not a checkpoint of a vision transformer of a known layout. {held(weights)}")
    settings, assumed = _sizes(path, strip_prefix(weights, "encoder.") or weights, heads)
    if "head.weight" not in weights:
        for name, (load, more) in LOADERS.items():
            if name in weights:
                encoder: Encoder = load(weights, **settings, **more, context=2).encoder
                return encoder, assumed
    if not any(".attn.q." in name for name in weights):
        assumed.append("ImageNet's mean and std assumed")  # MaPeT's are known to have them
    weights.pop("mask_token", None)  # DINOv2's, which its encoder without masks does not read
    with settings_errors():
        if "head.weight" in weights:
            return load_finetuned(path, heads=settings["heads"]), assumed
        plain = Encoder(
            settings["image_size"], settings["patch_size"], num_heads=settings["heads"], **encoder_settings(weights)
        )
    fill(plain, weights, VIT)
    return plain, assumed


def _bare(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's weights where all of its names begin with what trainers put before them."""
    for prefix in ("backbone.", "model."):
        if f"{prefix}patch_embed.proj.weight" in weights:
            return strip_prefix(weights, prefix)
    return weights


def _sizes(path: Path, weights: Mapping[str, Tensor], heads: int | None) -> tuple[dict[str, int], list[str]]:
    """Image size, patch size and heads, and what of them is assumed."""
    width, patch = (extent(weights, "patch_embed.proj.weight", VIT, axis) for axis in (0, 2))
    positions = extent(weights, "pos_embed", VIT, 1) - 1
    side = isqrt(max(0, positions))
    if side**2 != positions or not side:
        raise MapetError(
            f"{path} has positions for {positions} patches and CLS, which is not a square grid, and a checkpoint file "
            "does not store another one: give a folder that mapet export wrote."
        )
    found, reason = _heads(weights, width)
    assumed = [] if heads else [f"{found} heads assumed ({reason}; give --num-heads if it has others)"]
    return {"image_size": side * patch, "patch_size": patch, "heads": heads or found}, [
        *assumed,
        f"a grid of {side} × {side} assumed",
    ]


def _heads(weights: Mapping[str, Tensor], width: int) -> tuple[int, str]:
    """The number of heads that a file of these names most likely has, and the reason in words."""
    if width == SMALL and any(name.startswith("pretext_neck.") for name in weights):
        return 12, "as CAE-S"
    decoder = weights["decoder_embed.weight"].shape[0] if "decoder_embed.weight" in weights else 0
    if width in (TINY, SMALL) and 2 * decoder == width and count(weights, "decoder_blocks.") == 1:
        return 12, "as MAE-Lite"
    return default_heads(width), "width / 64"
