"""Checkpoints of the published MaPeT code: read without its code, by the names of its tensors.

Their attention keeps ``q`` apart from ``kv``; ours, like timm's, joins the three. The mask vector is
``mask_positional_token`` there and the head of pre-training ``decoder``.
"""

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mapet.errors import MapetError
from mapet.method.encoder import Classifier, Encoder
from mapet.method.pattern import mapet
from mapet.method.predict import TokenPrediction

RENAMED = {
    "mask_positional_token": "mask_token",
    "decoder.weight": "head.weight",
    "decoder.bias": "head.bias",
}


def load_pretraining(
    weights: Mapping[str, Tensor],
    *,
    image_size: int | tuple[int, int],
    patch_size: int | tuple[int, int],
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
    _expect(ours, "mask_token", "a pre-training checkpoint of the published code")
    encoder = Encoder(image_size, patch_size, num_heads=heads, **_dimensions(ours))
    if not 1 <= context <= encoder.length:
        raise MapetError(f"A context of {context} must lie in 1 … {encoder.length}, CLS included.")
    model = TokenPrediction(encoder, mapet(encoder.length, 1 + encoder.length - context), len(ours["head.weight"]))
    own = ("mask_token", "head.weight", "head.bias")
    _fill(model, {name if name in own else f"encoder.{name}": tensor for name, tensor in ours.items()})
    return model


def load_finetuned(path: str | Path, *, heads: int | None = None) -> Classifier:
    """A fine-tuned classifier of the published code: images (B, 3, height, width), normalised → logits (B, classes).

    Args:
        path: the archive (``.tar`` or ``.pth.tar``), read with the weights-only loader.
        heads: attention heads; by default width / 64, as in all published sizes.

    Raises:
        MapetError: no such file, not such an archive, or tensors that do not fit.
    """
    ours = _joined(_state_dict(Path(path)))
    _expect(ours, "head.weight", "a fine-tuned checkpoint of the published code")
    dimensions = _dimensions(ours)
    patch = ours["patch_embed.proj.weight"].shape[2:]
    side = round((ours["pos_embed"].shape[1] - 1) ** 0.5)
    model = Classifier(
        (side * patch[0], side * patch[1]),
        (patch[0], patch[1]),
        num_heads=heads or max(1, dimensions["embed_dim"] // 64),
        num_classes=len(ours["head.weight"]),
        **dimensions,
    )
    _fill(model, ours)
    return model.eval()


def _state_dict(path: Path) -> Mapping[str, Tensor]:
    """The tensors of an archive; of foreign objects only an argparse namespace is let in, as timm's saver adds one."""
    if not path.is_file():
        raise MapetError(f"There is no checkpoint file {path}.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        first = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise MapetError(f"{path} is not a torch archive of plain tensors ({first}).") from error
    if isinstance(content, Mapping):
        content = content.get("state_dict", content)
    if not isinstance(content, Mapping) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise MapetError(f"{path} holds no state dict: expected one under the key state_dict, or the dict itself.")
    return content


def _joined(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names: q and kv (keys first, then values) become one qkv."""
    ours = {RENAMED.get(name, name): tensor for name, tensor in weights.items()}
    for name in [name for name in ours if re.search(r"\.attn\.q\.(weight|bias)$", name)]:
        kv = name.replace(".q.", ".kv.")
        _expect(ours, kv, "the published code's attention")
        ours[name.replace(".q.", ".qkv.")] = torch.cat([ours.pop(name), ours.pop(kv)])
    return ours


def _dimensions(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the shapes tell of an encoder."""
    for name in ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight"):
        _expect(weights, name, "a vision transformer")
    width, channels = weights["patch_embed.proj.weight"].shape[:2]
    return {
        "in_chans": channels,
        "embed_dim": width,
        "depth": 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks.")),
        "mlp_ratio": len(weights["blocks.0.mlp.fc1.weight"]) / width,
        "init_values": 0.1 if "blocks.0.ls1.gamma" in weights else None,
        "global_pool": "avg" if "fc_norm.weight" in weights else "token",
    }


def _expect(weights: Mapping[str, Tensor], name: str, what: str) -> None:
    if name not in weights:
        some = ", ".join(list(weights)[:3]) or "nothing"
        raise MapetError(f'This is not {what}: it lacks "{name}" (it holds {some} …).')


def _fill(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    try:
        model.load_state_dict(dict(weights))
    except RuntimeError as error:
        reasons = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise MapetError(f"The checkpoint does not fit a {type(model).__name__}: {reasons}") from error
