"""Encoders to and from timm: the parameter names are the same, so only the settings need words."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import nn

from mapet.data.augment import IMAGENET_MEAN, IMAGENET_STD
from mapet.method.encoder import SIZES, Classifier, Encoder
from mapet.utils.errors import MapetError
from mapet.utils.owned import AN_EXPORT, EXPORT, discard, find_foreign, is_export
from mapet.utils.rng import uniform

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


def to_timm(
    encoder: Encoder,
    folder: Path,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
    crop_pct: float = 1.0,
    notes: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a folder that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads.

    timm's ``forward_features`` then equals ``Encoder.forward``. The folder appears whole or not at all.

    Args:
        encoder: its head goes along if it has one.
        folder: to be made; its parents too.
        mean: of each channel, on the scale from 0 to 1, that training subtracted.
        std: of each channel, by which training divided.
        interpolation: of the view, as timm names it.
        crop_pct: share of the shorter side that tests cut out, as timm names it.
        notes: how the encoder was trained, shown in the model card.
        overwrite: replace an earlier export.

    Returns:
        ``folder``.

    Raises:
        MapetError: a folder that is not empty, or statistics of another number of channels.
    """
    if not len(mean) == len(std) == encoder.in_chans:
        raise MapetError(f"An encoder of {encoder.in_chans} channels needs one mean and one std for each.")
    target = Path(folder).resolve()
    _free(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        part = Path(scratch) / target.name
        part.mkdir()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
        (part / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt", **AN_EXPORT}))
        config = json.dumps(_config(encoder, mean, std, interpolation, crop_pct), indent=2)
        (part / CONFIG).write_text(config + "\n", encoding="utf-8")
        (part / CARD).write_text(_card(encoder, Path(folder), notes or {}), encoding="utf-8")
        _swap(part, target)
    return Path(folder)


def _free(folder: Path, overwrite: bool) -> None:
    """Refuse a folder whose files are not ours to replace; first mend what a kill left of an earlier swap."""
    if folder.exists() and not folder.is_dir():
        raise MapetError(f"{folder} is a file: name another folder.")
    full, old = folder.exists() and any(folder.iterdir()), _old(folder)
    if is_export(old) and not full:
        old.replace(folder)
        full = True
    elif is_export(old) and is_export(folder):
        discard(old, EXPORT)
    if full and (other := find_foreign(folder, EXPORT)):
        raise MapetError(f'{folder} holds "{other.name}", which no export wrote: name another folder.')
    if full and not is_export(folder):
        raise MapetError(
            f"{folder} holds a model without the mark of mapet's exports, so nothing there is replaced: "
            "name another folder, or remove this one yourself."
        )
    if full and not overwrite:
        raise MapetError(f"{folder} already holds an export: name another folder, or replace it with --overwrite.")


def _swap(new: Path, target: Path) -> None:
    """Put the complete folder ``new`` in the place of ``target``, which is deleted only then."""
    old = _old(target)
    try:
        if target.exists():
            target.rename(old)
        new.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    discard(old, EXPORT)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _config(
    encoder: Encoder, mean: Sequence[float], std: Sequence[float], interpolation: str, crop_pct: float
) -> dict[str, Any]:
    """timm's ``config.json``: a base architecture, the arguments that make it ours, and the preprocessing."""
    size = next((name for name, size in SIZES.items() if size["embed_dim"] == encoder.embed_dim), "vit_base")
    return {
        "architecture": f"{size}_patch16_224",
        **AN_EXPORT,
        "num_classes": encoder.num_classes,
        "num_features": encoder.embed_dim,
        "global_pool": encoder.global_pool,
        "model_args": arguments(encoder),
        "pretrained_cfg": {
            "num_classes": encoder.num_classes,
            "input_size": [encoder.in_chans, *encoder.img_size],
            "fixed_input_size": True,
            "interpolation": interpolation,
            "crop_pct": crop_pct,
            "crop_mode": "center",
            "mean": list(mean),
            "std": list(std),
            "classifier": "head",
            # timm's way of changing three channels into others, which it would also try on other numbers
            "first_conv": "patch_embed.proj" if encoder.in_chans == 3 else None,
        },
    }


def arguments(encoder: Encoder) -> dict[str, Any]:
    """The arguments of timm's ``VisionTransformer``, which are ``Encoder``'s, but for the head: ready for JSON."""
    return {
        "img_size": list(encoder.img_size),
        "patch_size": list(encoder.patch_size),
        "in_chans": encoder.in_chans,
        "embed_dim": encoder.embed_dim,
        "depth": len(encoder.blocks),
        "num_heads": encoder.num_heads,
        "mlp_ratio": encoder.mlp_ratio,
        "init_values": encoder.init_values or None,
        "global_pool": encoder.global_pool,
    }


def loading_lines(folder: Path, *, classifies: bool = False) -> str:
    """Three lines of Python that load an export and take one feature vector, or one score a class, per image."""
    features = "features = model.forward_features(images)[:, 1:].mean(dim=1)  # the mean of the patches"
    return (
        "import timm\n"
        f'model = timm.create_model("local-dir:{Path(folder).as_posix()}", pretrained=True).eval()\n'
        f"{'logits = model(images)' if classifies else features}"
    )


def _card(encoder: Encoder, folder: Path, notes: Mapping[str, Any]) -> str:
    channels, (height, width) = encoder.in_chans, encoder.img_size
    trained = "".join(f"- {name}: {value}\n" for name, value in notes.items()) or "- not recorded\n"
    encodes = "pre-trained without labels by predicting visual tokens"
    kind = f"a classifier of {encoder.num_classes} classes" if encoder.num_classes else encodes
    other = "other classes" if encoder.num_classes else "fine-tuning"
    return f"""---
library_name: timm
tags:
- image-{"classification" if encoder.num_classes else "feature-extraction"}
- mapet
---
# {folder.resolve().name}

A vision transformer, {kind} (mapet).

- images: {channels} × {height} × {width} (channels, height, width), normalised as `{CONFIG}` says
- patches: {encoder.patch_size[0]} × {encoder.patch_size[1]} pixels, a grid of {encoder.grid[0]} × {encoder.grid[1]}
- width {encoder.embed_dim}, {len(encoder.blocks)} blocks, {encoder.num_heads} heads, \
{sum(parameter.numel() for parameter in encoder.parameters()) / 1e6:.2f} M parameters

## Training

{trained}
## Use

```python
{loading_lines(folder, classifies=encoder.num_classes > 0)}
```

For {other} add `num_classes=…` to `create_model`.
"""


def from_timm(model: nn.Module) -> Encoder:
    """The encoder with the weights of one of timm's plain ``VisionTransformer`` models; its head is left behind.

    Raises:
        MapetError: a model with parts that ``Encoder`` has not, or whose features differ from the encoder's.
    """
    try:
        encoder = _like(model)
        weights = {name: tensor for name, tensor in model.state_dict().items() if name[:5] != "head."}
        encoder.load_state_dict(weights)
    except (AttributeError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise MapetError(f"This {type(model).__name__} is not a plain vision transformer: {reason}") from error
    _agree(encoder, model)
    return encoder.train(model.training)


def load_export(folder: Path) -> Encoder:
    """The encoder in a folder that ``to_timm`` wrote; a ``Classifier`` where it has a head.

    Raises:
        MapetError: timm cannot load the folder, what it loads is no plain vision transformer, or its images are
            normalised otherwise than ours.
    """
    import timm

    try:
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except (RuntimeError, ValueError, TypeError, KeyError, OSError, SafetensorError) as error:
        raise MapetError(f"timm cannot load {folder}: {' '.join(str(error).split())[:200]}") from error
    normalised = tuple(tuple(model.pretrained_cfg.get(name) or ()) for name in ("mean", "std"))
    if normalised != (IMAGENET_MEAN, IMAGENET_STD):
        raise MapetError(f"{folder} normalises its images by {normalised}, and only ImageNet's statistics are known.")
    encoder = from_timm(model)
    if not model.num_classes:
        return encoder
    classifier = Classifier(**arguments(encoder), num_classes=model.num_classes)
    classifier.load_state_dict(model.state_dict())
    return classifier


def _like(model: Any) -> Encoder:
    block = model.blocks[0]
    return Encoder(
        model.patch_embed.img_size,
        model.patch_embed.patch_size,
        in_chans=model.patch_embed.proj.in_channels,
        embed_dim=model.embed_dim,
        depth=len(model.blocks),
        num_heads=block.attn.num_heads,
        mlp_ratio=block.mlp.fc1.out_features / model.embed_dim,
        init_values=1.0 if hasattr(block.ls1, "gamma") else None,
        global_pool="token" if isinstance(model.fc_norm, nn.Identity) else "avg",
    )


@torch.no_grad()
def _agree(encoder: Encoder, model: nn.Module) -> None:
    """Shapes do not tell of other activations or norms: one image of noise does."""
    device = next(model.parameters()).device
    shape = torch.Size((1, encoder.in_chans, *encoder.img_size))
    image = (uniform(0, torch.arange(shape.numel())).view(shape).float() * 4 - 2).to(device)
    training = model.training
    expected = model.eval().forward_features(image)  # type: ignore[operator]
    model.train(training)
    found = encoder.to(device).eval()(image)
    if not torch.allclose(found, expected, atol=1e-4, rtol=1e-3):
        raise MapetError(
            f"This {type(model).__name__} computes otherwise than a plain vision transformer "
            f"(features differ by up to {float((found - expected).abs().max()):.2g}): it cannot become an encoder."
        )
