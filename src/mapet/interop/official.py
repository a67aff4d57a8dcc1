"""Checkpoints of published code, read without it by the names of their tensors: MaPeT's here, its competitors' beside.

MaPeT's attention keeps ``q`` apart from ``kv``; ours, like timm's, joins the three. The mask vector is
``mask_positional_token`` there and the head of pre-training ``decoder``.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mapet.interop.competitors import load_beit, load_cae, load_mae
from mapet.interop.fitting import Size, beside, dimensions, fitting, hidden
from mapet.method.encoder import Classifier, Encoder
from mapet.method.pattern import mapet
from mapet.method.predict import TokenPrediction
from mapet.utils.weights import extent, fill, named, read_weights

__all__ = ["load_beit", "load_cae", "load_finetuned", "load_mae", "load_pretraining"]

PRETRAINED, TUNED = "MaPeT before fine-tuning", "MaPeT after fine-tuning"
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
    """A pre-training model of the published code (``mapet_*``), ready for ``logits`` and further training.

    Args:
        weights: its state dict.
        image_size: pixels, or (height, width).
        patch_size: pixels, or (height, width).
        heads: attention heads; the tensors do not tell.
        context: places of the order that are given, CLS included (their ``least_number``; 50 for 197 positions).

    Raises:
        MapetError: missing, unexpected or wrongly shaped tensors, or a context that leaves nothing to predict.
    """
    ours = _joined(weights)
    named(ours, "mask_token", PRETRAINED)
    vocabulary = extent(ours, "head.weight", PRETRAINED)
    with fitting():
        encoder = Encoder(image_size, patch_size, num_heads=heads, **dimensions(ours))
    model = TokenPrediction(encoder, mapet(encoder.length, hidden(encoder, context)), vocabulary)
    fill(model, beside(ours, "mask_token", "head."), PRETRAINED)
    return model


def load_finetuned(path: str | Path, *, heads: int | None = None) -> Classifier:
    """A fine-tuned classifier of the published code: images (B, 3, height, width), normalised → logits (B, classes).

    Args:
        path: the archive (``.tar`` or ``.pth.tar``), read with the weights-only loader.
        heads: attention heads; by default width / 64, as in all published sizes.

    Raises:
        MapetError: no such file, not such an archive, or tensors that do not fit.
    """
    ours = _joined(read_weights(Path(path)))
    classes = extent(ours, "head.weight", TUNED)
    sizes = dimensions(ours)
    patch = ours["patch_embed.proj.weight"].shape[2:]
    side = round((ours["pos_embed"].shape[1] - 1) ** 0.5)
    with fitting():
        model = Classifier(
            (side * patch[0], side * patch[1]),
            (patch[0], patch[1]),
            num_heads=heads or max(1, sizes["embed_dim"] // 64),
            num_classes=classes,
            **sizes,
        )
    fill(model, ours, TUNED)
    return model.eval()


def _joined(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names: q and kv (keys first, then values) become one qkv."""
    ours = {RENAMED.get(name, name): tensor for name, tensor in weights.items()}
    for name in [name for name in ours if re.search(r"\.attn\.q\.(weight|bias)$", name)]:
        kv = name.replace(".q.", ".kv.")
        named(ours, kv, "MaPeT's attention")
        ours[name.replace(".q.", ".qkv.")] = torch.cat([ours.pop(name), ours.pop(kv)])
    return ours
