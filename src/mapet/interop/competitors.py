"""Load pre-training checkpoints of the published code of MAE, BEiT and CAE by the names of their tensors."""

import re
from collections.abc import Mapping

from torch import Tensor

from mapet.interop.state_dict import (
    Size,
    add_encoder_prefix,
    encoder_settings,
    join_qkv,
    num_masked,
    settings_errors,
    strip_prefix,
)
from mapet.method.cae import CAE
from mapet.method.encoder import Encoder
from mapet.method.mae import MAE
from mapet.method.pattern import mim
from mapet.method.predict import TokenPrediction
from mapet.utils.errors import MapetError
from mapet.utils.weights import count, extent, fill

CAE_NAMES = (
    (r"^pretext_neck\.norm\.", "regressor_norm."),
    (r"^pretext_neck\.norm2\.", "decoder_norm."),
    (r"^pretext_neck\.", ""),
    (r"^encoder_to_decoder\.", "encoder_to_decoder.0."),
    (r"^encoder_to_decoder_norm\.", "encoder_to_decoder.1."),
    (r"\.cross_attn\.([qv])_bias$", r".cross_attn.\1.bias"),
    (r"\.(mlp|norm2)_cross\.", r".\1."),
)


def load_mae(
    weights: Mapping[str, Tensor],
    *,
    image_size: Size,
    patch_size: Size,
    heads: int,
    decoder_heads: int,
    context: int,
    normalize_pixels: bool = True,
) -> MAE:
    """Return a pre-training model of MAE (facebookresearch/mae), decoder included.

    Args:
        weights: its state dict.
        image_size: pixels, or (height, width).
        patch_size: pixels, or (height, width).
        heads: number of attention heads of the encoder, which the checkpoint does not store.
        decoder_heads: number of attention heads of the decoder.
        context: number of given positions, CLS included (50 of 197 when 75 % are masked).
        normalize_pixels: whether targets are normalised per patch (their ``norm_pix_loss``).

    Raises:
        MapetError: a tensor is missing, unexpected or has another shape, or the settings do not fit.
    """
    what = "MAE with its decoder"
    width = extent(weights, "decoder_embed.weight", what)
    with settings_errors():
        model = MAE(
            Encoder(image_size, patch_size, num_heads=heads, pos_embed="sincos", **encoder_settings(weights)),
            context=context,
            decoder_embed_dim=width,
            decoder_depth=count(weights, "decoder_blocks."),
            decoder_num_heads=decoder_heads,
            normalize_pixels=normalize_pixels,
        )
    fill(model, add_encoder_prefix(weights, "mask_token", "decoder_"), what)
    return model


def load_beit(
    weights: Mapping[str, Tensor], *, image_size: Size, patch_size: Size, heads: int, context: int
) -> TokenPrediction:
    """Return a pre-training model of BEiT (microsoft/unilm) with absolute position embeddings.

    Args:
        weights: its state dict.
        image_size: pixels, or (height, width).
        patch_size: pixels, or (height, width).
        heads: number of attention heads, which the checkpoint does not store.
        context: number of given positions, CLS included.

    Raises:
        MapetError: the model has a relative position bias; a tensor is missing, unexpected or has another shape; or the
            settings do not fit.
    """
    relative = next((name for name in weights if "relative_position" in name), None)
    if relative:
        raise MapetError(
            f"These weights have a relative position bias ({relative}), which is not supported: "
            "load a BEiT with absolute positions (pos_embed)."
        )
    ours = {name.replace("lm_head.", "head."): tensor for name, tensor in join_qkv(_with_layer_scale(weights)).items()}
    what = "BEiT with its head"
    vocabulary = extent(ours, "head.weight", what)
    with settings_errors():
        encoder = Encoder(image_size, patch_size, num_heads=heads, **encoder_settings(ours))
    model = TokenPrediction(encoder, mim(encoder.length, num_masked(encoder, context)), vocabulary)
    fill(model, add_encoder_prefix(ours, "mask_token", "head."), what)
    return model


def load_cae(
    weights: Mapping[str, Tensor], *, image_size: Size, patch_size: Size, heads: int, decoder_heads: int, context: int
) -> CAE:
    """Return a pre-training model of CAE (lxtGH/CAE), without its teacher's weights: ours is the encoder itself.

    Args:
        weights: its state dict.
        image_size: pixels, or (height, width).
        patch_size: pixels, or (height, width).
        heads: number of attention heads of the encoder, which the checkpoint does not store.
        decoder_heads: number of attention heads of regressor and decoder.
        context: number of given positions, CLS included (99 of 197 when half of the patches are masked).

    Raises:
        MapetError: a tensor is missing, unexpected or has another shape, or the settings do not fit.
    """
    student = {name: tensor for name, tensor in weights.items() if not name.startswith("teacher.")}
    ours = {_cae_name(name): tensor for name, tensor in join_qkv(_with_layer_scale(student)).items()}
    what = "CAE with its decoder"
    vocabulary, width = (extent(ours, "head.weight", what, axis) for axis in (0, 1))
    settings = encoder_settings(strip_prefix(ours, "encoder."))
    with settings_errors():
        model = CAE(
            Encoder(image_size, patch_size, num_heads=heads, pos_embed="sincos", **settings),
            context=context,
            vocabulary=vocabulary,
            regressor_depth=count(ours, "regressor_blocks."),
            decoder_depth=count(ours, "decoder_blocks."),
            decoder_embed_dim=width,
            decoder_num_heads=decoder_heads,
        )
    fill(model, ours, what)
    return model


def _cae_name(name: str) -> str:
    for theirs, ours in CAE_NAMES:
        name = re.sub(theirs, ours, name)
    return name


def _with_layer_scale(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename BEiT's and CAE's layer scale, ``gamma_1`` and ``gamma_2``."""
    return {re.sub(r"\.gamma_([12])(_cross)?$", r".ls\1.gamma", name): tensor for name, tensor in weights.items()}
