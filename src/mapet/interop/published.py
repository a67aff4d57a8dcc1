"""Encoders from timm's published models and from Hugging Face folders of ViT and ViT-MAE."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mapet.data.augment import IMAGENET_MEAN, IMAGENET_STD
from mapet.interop.state_dict import encoder_settings, settings_errors
from mapet.interop.timm import arguments, from_timm
from mapet.method.encoder import Classifier, Encoder
from mapet.utils.errors import MapetError, reason
from mapet.utils.weights import extent, fill, named, read_weights

HUGGING_FACE = ("vit", "vit_mae")  # model types whose computation is that of ``Encoder``
NAMES = (  # of transformers' ViT, and ours
    (r"^(?:vit|model)\.", ""),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(?:encoder\.)?layers?\.", "blocks."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
)
UNUSED = ("pooler.", "classifier.", "decoder.", "embeddings.mask_token", "mask_token")


def is_timm_name(name: str) -> bool:
    """Whether timm knows a model of this name, with or without a tag or ``timm/`` before it."""
    import timm

    return timm.is_model(name.removeprefix("timm/"))


def load_published(name: str) -> Encoder:
    """The encoder of a model that timm publishes; its weights are downloaded if they are not in the local cache.

    A ``Classifier`` if the model has a head. Models that normalise images by other statistics than ImageNet's get a
    patch embedding that takes ImageNet's and computes the same.

    Raises:
        MapetError: no weights, or not a plain vision transformer.
    """
    import timm

    name = name.removeprefix("timm/")
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.has_weights:
        tags = list(timm.list_pretrained(f"{name.partition('.')[0]}.*"))[:3]
        raise MapetError(f"timm publishes no weights of {name}{': give ' + ' or '.join(tags) if tags else ''}.")
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # the exceptions of the download's libraries vary
        raise MapetError(
            f"The weights of {name} cannot be downloaded ({type(error).__name__}): download "
            f"{cfg.hf_hub_id or cfg.url} elsewhere, and give the file."
        ) from None
    return of_timm(model)


def of_timm(model: Any) -> Encoder:
    """The encoder of a timm model for ImageNet's statistics, a ``Classifier`` if it has a head.

    Raises:
        MapetError: the model is not a plain vision transformer.
    """
    encoder = from_timm(model)
    if model.num_classes:
        classifier = Classifier(**arguments(encoder), num_classes=model.num_classes)
        classifier.load_state_dict(model.state_dict())
        classifier.crop_pct = float(model.pretrained_cfg.get("crop_pct") or 1.0)
        encoder = classifier
    renormalize(encoder, *(model.pretrained_cfg.get(name) or () for name in ("mean", "std")))
    return encoder.eval()


@torch.no_grad()
def renormalize(encoder: Encoder, mean: Sequence[float], std: Sequence[float]) -> None:
    """Let an encoder for images normalised by ``mean`` and ``std`` take images normalised by ImageNet's statistics.

    The patch embedding is linear, so this changes no feature except by rounding. Without one entry per channel, and for
    other images than RGB, nothing is changed.
    """
    if not len(mean) == len(std) == encoder.in_chans == len(IMAGENET_MEAN):
        return
    if (tuple(mean), tuple(std)) == (IMAGENET_MEAN, IMAGENET_STD):
        return
    theirs, ours = torch.tensor([mean, std]).double(), torch.tensor([IMAGENET_MEAN, IMAGENET_STD]).double()
    proj = encoder.patch_embed.proj
    weight = proj.weight.double()
    assert proj.bias is not None
    proj.bias += (weight * ((ours[0] - theirs[0]) / theirs[1])[:, None, None]).sum(dim=(1, 2, 3)).float()
    proj.weight.copy_(weight * (ours[1] / theirs[1])[:, None, None])


def is_hugging_face(folder: Path) -> bool:
    """Whether the folder holds a model with transformers' configuration."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "model_type" in content


def load_hugging_face(folder: Path) -> Encoder:
    """The encoder of a folder that transformers' ``ViTModel`` or ``ViTMAEModel`` was saved into, without its head.

    Images normalised by the folder's own statistics are provided for as in ``renormalize``. Norms get an epsilon of
    1e-6; the 1e-12 of transformers' default changes features in their fifth digit.

    Raises:
        MapetError: another kind of model, or files that do not fit each other.
    """
    config = {"image_size": 224, "patch_size": 16, "num_attention_heads": 12, **_json(folder / "config.json")}
    if (kind := config.get("model_type")) not in HUGGING_FACE:
        raise MapetError(f"{folder} is a {kind} of transformers: give one of {', '.join(HUGGING_FACE)}, or an export.")
    if config.get("hidden_act", "gelu") != "gelu" or not config.get("qkv_bias", True):
        raise MapetError(f"{folder} has another activation or no bias for queries, keys and values: give another FROM.")
    weights = _renamed(_read(folder), f"the {kind} in {folder}")
    what = f"the {kind} in {folder}"
    side, patch, heads = (config[name] for name in ("image_size", "patch_size", "num_attention_heads"))
    with settings_errors():
        encoder = Encoder(side, patch, num_heads=heads, **encoder_settings(weights))
    if "norm.weight" not in weights:
        raise MapetError(f"{folder} lacks the last norm of {what}: give another FROM.")
    fill(encoder, weights, what)
    processor = _json(folder / "preprocessor_config.json") if (folder / "preprocessor_config.json").is_file() else {}
    renormalize(encoder, processor.get("image_mean") or (0.5,) * 3, processor.get("image_std") or (0.5,) * 3)
    return encoder.eval()


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MapetError(f"{path} cannot be read ({reason(error)}): restore it.") from error
    if not isinstance(content, dict):
        raise MapetError(f"{path} is not a JSON object: restore it.")
    return content


def _read(folder: Path) -> dict[str, Tensor]:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return read_weights(folder / name)
    raise MapetError(f"{folder} holds no model.safetensors: give a folder that save_pretrained wrote in one file.")


def _renamed(weights: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """transformers' names → ours, queries, keys and values joined; heads, poolers and decoders are left out."""
    ours: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        for theirs, our in NAMES:
            name = re.sub(theirs, our, name)
        if not name.startswith(UNUSED):
            ours[name] = tensor
    extent(ours, "patch_embed.proj.weight", what)
    for name in [name for name in ours if ".attn.query." in name]:
        parts = [name.replace("query", part) for part in ("query", "key", "value")]
        ours[name.replace("query", "qkv")] = torch.cat([named(ours, part, what) for part in parts])
        for part in parts:
            del ours[part]
    return ours
