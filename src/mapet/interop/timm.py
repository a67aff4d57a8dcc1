"""Export encoders to timm and import them from timm; parameter names are the same on both sides."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from mapet.data.augment import IMAGENET_MEAN, IMAGENET_STD
from mapet.interop.card import card
from mapet.interop.export_folder import CARD, CONFIG, PROGRAMS, WEIGHTS, read_config, replacing, verify, weights, write
from mapet.interop.graphs import FILES, Graph, compare, write_graph
from mapet.method.encoder import SIZES, Classifier, Encoder
from mapet.utils.errors import MapetError, reason
from mapet.utils.fingerprint import file_hash
from mapet.utils.owned import AN_EXPORT
from mapet.utils.rng import uniform

UPERNET = "upernet"  # the architecture of a segmentation model, which timm lacks


def to_timm(
    encoder: Encoder,
    folder: Path,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
    crop_pct: float = 1.0,
    notes: Mapping[str, Any] | None = None,
    formats: Sequence[str] = (),
    overwrite: bool = False,
) -> Path:
    """Write a folder that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads, atomically.

    timm's ``forward_features`` then equals ``Encoder.forward``, which is compared first. Returns ``folder``.

    Args:
        encoder: the encoder; a ``Classifier`` is exported with its head.
        folder: output folder; it and its parents are created.
        mean, std: per-channel statistics by which training normalised pixels in [0, 1].
        interpolation: interpolation of the evaluation transform, by timm's name.
        crop_pct: share of the shorter side that the evaluation transform crops.
        notes: training settings, shown in the model card.
        formats: programs that are written, too: ``onnx``, ``torch``.
        overwrite: replace an earlier export.

    Raises:
        MapetError: the folder is not empty, timm's model or a program differs from the encoder, or ``mean`` or ``std``
            does not have one entry per channel.
    """
    if not len(mean) == len(std) == encoder.in_chans:
        raise MapetError(
            f"mean and std must have {encoder.in_chans} entries, one per channel of the encoder, "
            f"got {len(mean)} and {len(std)}."
        )
    target = Path(folder).resolve()
    with replacing(target, overwrite) as new:
        config = _config(encoder, mean, std, interpolation, crop_pct)
        write_files(new, encoder, config, card(encoder, target.name, notes or {}, formats), formats)
        _compare_timm(encoder, new)
    return Path(folder)


def write_files(
    folder: Path, encoder: Encoder, config: dict[str, Any], text: str, formats: Sequence[str], *, dense: bool = False
) -> None:
    """Write programs, weights, ``config`` with the hashes of the programs, and the card ``text`` into a new export."""
    for name in formats:
        write_graph(encoder, name, folder, dense=dense)
        config.setdefault(PROGRAMS, {})[FILES[name]] = file_hash(folder / FILES[name])
    write(folder / WEIGHTS, weights(encoder.state_dict(), config))
    write(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    write(folder / CARD, text.encode(errors="backslashreplace"))  # of names that are not UTF-8


def _config(
    encoder: Encoder, mean: Sequence[float], std: Sequence[float], interpolation: str, crop_pct: float
) -> dict[str, Any]:
    """Return timm's ``config.json``: base architecture, arguments that override it, preprocessing."""
    size = next((name for name, size in SIZES.items() if size["embed_dim"] == encoder.embed_dim), "vit_base")
    names = list(encoder.classes) if isinstance(encoder, Classifier) else []
    return {
        "architecture": f"{size}_patch16_224",
        **AN_EXPORT,
        "num_classes": encoder.num_classes,
        **({"label_names": names} if names else {}),
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
            # timm adapts this layer to other numbers of input channels, which it can only from 3
            "first_conv": "patch_embed.proj" if encoder.in_chans == 3 else None,
        },
    }


def arguments(encoder: Encoder) -> dict[str, Any]:
    """Return the arguments of the encoder, JSON-ready, without head; timm's ``VisionTransformer`` takes the same."""
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


def from_timm(model: nn.Module) -> Encoder:
    """Return an encoder with the weights of a plain ``VisionTransformer`` of timm, without its head.

    Raises:
        MapetError: the model has modules that ``Encoder`` lacks, or computes other features.
    """
    try:
        encoder = _encoder_like(model)
        weights = {name: tensor for name, tensor in model.state_dict().items() if name[:5] != "head."}
        encoder.load_state_dict(weights)
    except (AttributeError, TypeError, RuntimeError) as error:
        raise MapetError(f"This {type(model).__name__} is not a plain vision transformer: {reason(error)}") from error
    _check_same_features(encoder, model)
    return encoder.train(model.training)


def load_export(folder: Path) -> Encoder:
    """Return the encoder of a folder written by ``to_timm``, a ``Classifier`` if it has a head.

    Raises:
        MapetError: timm cannot load the folder, its content was changed, the model is not a plain vision transformer,
            or it does not normalise images with ImageNet's statistics.
    """
    import timm

    verify(folder)
    if read_config(folder).get("architecture") == UPERNET:
        raise MapetError(f"{folder} holds a segmentation model: give the run that it was trained from.")
    try:
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except (RuntimeError, ValueError, TypeError, KeyError, OSError, SafetensorError) as error:
        raise MapetError(f"timm cannot load {folder}: {reason(error)}") from error
    normalised = tuple(tuple(model.pretrained_cfg.get(name) or ()) for name in ("mean", "std"))
    if normalised != (IMAGENET_MEAN, IMAGENET_STD):
        raise MapetError(
            f"{folder} normalises images with mean and std {normalised}, but only ImageNet's are supported: "
            f"{(IMAGENET_MEAN, IMAGENET_STD)}."
        )
    encoder = from_timm(model)
    if not model.num_classes:
        return encoder
    classifier = Classifier(**arguments(encoder), num_classes=model.num_classes)
    classifier.load_state_dict(model.state_dict())
    config = read_config(folder)
    classifier.classes = tuple(map(str, config.get("label_names") or ()))
    classifier.crop_pct = float(model.pretrained_cfg.get("crop_pct") or 1.0)
    return classifier


def _compare_timm(encoder: Encoder, folder: Path) -> None:
    """Refuse an export whose model in timm computes something else."""
    import timm

    with torch.random.fork_rng(devices=()):  # timm draws weights before it reads them
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    head = (model.forward_head,) if encoder.num_classes else ()

    def run(images: Tensor) -> tuple[Tensor, ...]:
        features = model.forward_features(images)
        return (features, *(one(features) for one in head))

    compare(Graph(encoder), run, "timm")


def _encoder_like(model: Any) -> Encoder:
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
def _check_same_features(encoder: Encoder, model: nn.Module) -> None:
    """Compare the features of one noise image: equal shapes do not rule out other activations or norms."""
    device = next(model.parameters()).device
    shape = torch.Size((1, encoder.in_chans, *encoder.img_size))
    image = (uniform(0, torch.arange(shape.numel())).view(shape).float() * 4 - 2).to(device)
    training = model.training
    expected = model.eval().forward_features(image)  # type: ignore[operator]
    model.train(training)
    found = encoder.to(device).eval()(image)
    if not torch.allclose(found, expected, atol=1e-4, rtol=1e-3):
        raise MapetError(
            f"This {type(model).__name__} is not a plain vision transformer: its features differ by up to "
            f"{float((found - expected).abs().max()):.2g}."
        )
