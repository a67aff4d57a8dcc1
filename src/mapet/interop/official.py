"""Load checkpoints of the published MaPeT code (aimagelab/MaPeT) by the names of their tensors.

Its attention has ``q`` and ``kv`` (keys first, then values); its mask token is named ``mask_positional_token``, and the
head of pre-training ``decoder``.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mapet.interop.state_dict import (
    Size,
    add_encoder_prefix,
    default_heads,
    encoder_settings,
    join_qkv,
    num_masked,
    settings_errors,
)
from mapet.method.encoder import Classifier, Encoder
from mapet.method.pattern import mapet
from mapet.method.predict import TokenPrediction
from mapet.utils.weights import extent, fill, named, read_weights

PRETRAINED, FINETUNED = "MaPeT before fine-tuning", "MaPeT after fine-tuning"
CROP_PCT = 0.9  # of their validation
RENAMED = {
    "mask_positional_token": "mask_token",
    "decoder.weight": "head.weight",
    "decoder.bias": "head.bias",
}


def load_pretraining(
    weights: Mapping[str, Tensor],
    *,
    image_size: Size,
    patch_size: Size,
    heads: int,
    context: int,
) -> TokenPrediction:
    """Return a pre-training model of the published code (``mapet_*``), for ``logits`` and further training.

    Args:
        weights: its state dict.
        image_size: pixels, or (height, width).
        patch_size: pixels, or (height, width).
        heads: number of attention heads, which the checkpoint does not store.
        context: number of given positions, CLS included (their ``least_number``; 50 for 197 positions).

    Raises:
        MapetError: a tensor is missing, unexpected or has another shape, or ``context`` is not in 1 … L.
    """
    ours = _renamed(weights)
    named(ours, "mask_token", PRETRAINED)
    vocabulary = extent(ours, "head.weight", PRETRAINED)
    with settings_errors():
        encoder = Encoder(image_size, patch_size, num_heads=heads, **encoder_settings(ours))
    model = TokenPrediction(encoder, mapet(encoder.length, num_masked(encoder, context)), vocabulary)
    fill(model, add_encoder_prefix(ours, "mask_token", "head."), PRETRAINED)
    return model


def load_finetuned(path: str | Path, *, heads: int | None = None) -> Classifier:
    """Return a fine-tuned classifier of the published code, in evaluation mode.

    Args:
        path: the archive (``.tar`` or ``.pth.tar``), read with the weights-only loader.
        heads: number of attention heads, which the checkpoint does not store; default: width / 64, as published.

    Raises:
        MapetError: the file is missing or not such an archive, or a tensor is missing, unexpected or of another shape.
    """
    ours = _renamed(read_weights(Path(path)))
    num_classes = extent(ours, "head.weight", FINETUNED)
    settings = encoder_settings(ours)
    height, width = ours["patch_embed.proj.weight"].shape[2:]
    side = round((ours["pos_embed"].shape[1] - 1) ** 0.5)
    with settings_errors():
        model = Classifier(
            (side * height, side * width),
            (height, width),
            num_heads=heads or default_heads(settings["embed_dim"]),
            num_classes=num_classes,
            **settings,
        )
    fill(model, ours, FINETUNED)
    model.crop_pct = CROP_PCT
    return model.eval()


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return join_qkv({RENAMED.get(name, name): tensor for name, tensor in weights.items()})
