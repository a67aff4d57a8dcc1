"""Pre-training checkpoints of MAE, BEiT and CAE, by the names of their tensors in the published code.

BEiT and CAE keep a bias for queries and one for values beside a joint ``qkv.weight``, and none for keys, where it would
change nothing; ours, like timm's, joins the three, with zeros for the keys. Their layer scale is ``gamma_1``,
``gamma_2``.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from mapet.interop.fitting import Size, beside, dimensions, fitting, hidden, part
from mapet.method.cae import CAE
from mapet.method.encoder import Encoder
from mapet.method.mae import MAE
from mapet.method.pattern import mim
from mapet.method.predict import TokenPrediction
from mapet.utils.errors import MapetError
from mapet.utils.weights import count, extent, fill, join_qkv_bias

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
    """A pre-training model of MAE (facebookresearch/mae), decoder included.

    Args:
        weights: its state dict.
        image_size: pixels, or (height, width).
        patch_size: pixels, or (height, width).
        heads: attention heads of the encoder; the tensors do not tell.
        decoder_heads: attention heads of the decoder.
        context: places of the order that are given, CLS included (50 of 197 when 75 % are hidden).
        normalize_pixels: whether its targets were normalised patch by patch (``norm_pix_loss``).

    Raises:
        MapetError: missing, unexpected or wrongly shaped tensors, or settings that do not fit them.
    """
    what = "MAE with its decoder"
    width = extent(weights, "decoder_embed.weight", what)
    with fitting():
        model = MAE(
            Encoder(image_size, patch_size, num_heads=heads, pos_embed="sincos", **dimensions(weights)),
            context=context,
            decoder_embed_dim=width,
            decoder_depth=count(weights, "decoder_blocks."),
            decoder_num_heads=decoder_heads,
            normalize_pixels=normalize_pixels,
        )
    fill(model, beside(weights, "mask_token", "decoder_"), what)
    return model


def load_beit(
    weights: Mapping[str, Tensor], *, image_size: Size, patch_size: Size, heads: int, context: int
) -> TokenPrediction:
    """A pre-training model of BEiT (microsoft/unilm) with absolute positions: all hidden patches predicted at once.

    Args:
        weights: its state dict.
        image_size: pixels, or (height, width).
        patch_size: pixels, or (height, width).
        heads: attention heads; the tensors do not tell.
        context: places of the order that are given, CLS included.

    Raises:
        MapetError: a relative position bias; missing, unexpected or wrongly shaped tensors, or settings that do not
            fit them.
    """
    relative = next((name for name in weights if "relative_position" in name), None)
    if relative:
        raise MapetError(
            f"These weights have a relative position bias ({relative}), which cannot be put into the rows: only a BEiT "
            "with absolute positions (pos_embed) alone can be loaded."
        )
    ours = {name.replace("lm_head.", "head."): tensor for name, tensor in _joined(weights).items()}
    what = "BEiT with its head"
    vocabulary = extent(ours, "head.weight", what)
    with fitting():
        encoder = Encoder(image_size, patch_size, num_heads=heads, **dimensions(ours))
    model = TokenPrediction(encoder, mim(encoder.length, hidden(encoder, context)), vocabulary)
    fill(model, beside(ours, "mask_token", "head."), what)
    return model


def load_cae(
    weights: Mapping[str, Tensor], *, image_size: Size, patch_size: Size, heads: int, decoder_heads: int, context: int
) -> CAE:
    """A pre-training model of CAE (lxtGH/CAE); its teacher's weights are left out, as ours is the encoder itself.

    Args:
        weights: its state dict.
        image_size: pixels, or (height, width).
        patch_size: pixels, or (height, width).
        heads: attention heads of the encoder; the tensors do not tell.
        decoder_heads: attention heads of regressor and decoder.
        context: places of the order that are given, CLS included (99 of 197 when half of the patches are hidden).

    Raises:
        MapetError: missing, unexpected or wrongly shaped tensors, or settings that do not fit them.
    """
    student = {name: tensor for name, tensor in weights.items() if not name.startswith("teacher.")}
    ours = {_cae_name(name): tensor for name, tensor in _joined(student).items()}
    what = "CAE with its decoder"
    vocabulary, width = (extent(ours, "head.weight", what, axis) for axis in (0, 1))
    with fitting():
        model = CAE(
            Encoder(image_size, patch_size, num_heads=heads, pos_embed="sincos", **dimensions(part(ours, "encoder."))),
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


def _joined(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Layer scale by our names, and one bias for queries, keys (zeros) and values."""
    ours = {re.sub(r"\.gamma_([12])(_cross)?$", r".ls\1.gamma", name): tensor for name, tensor in weights.items()}
    return join_qkv_bias(ours, "attention with a bias for queries and values")
