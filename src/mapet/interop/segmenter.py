"""Exports of segmentation models: weights, the programs of ``graphs`` and a card; timm has no such models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from mapet.interop.card import segmentation_card
from mapet.interop.export_folder import CONFIG, WEIGHTS, read_config, replacing, verify
from mapet.interop.timm import UPERNET, write_files
from mapet.method.encoder import Encoder
from mapet.utils.owned import AN_EXPORT


def write_segmenter(
    model: Encoder,
    folder: Path,
    *,
    model_args: Mapping[str, Any],
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    notes: Mapping[str, Any],
    formats: Sequence[str],
    overwrite: bool = False,
) -> Path:
    """Write a segmentation model as a folder, atomically. Returns ``folder``.

    Args:
        model: normalised images (B, 3, H, W) → logits (B, classes, H, W).
        folder: output folder; it and its parents are created.
        model_args: what the model's class is called with.
        classes: names in the order of the logits.
        mean, std: per-channel statistics by which training normalised pixels in [0, 1].
        notes: training settings, shown in the model card.
        formats: ``onnx``, ``torch``; images of the model's ``img_size``.
        overwrite: replace an earlier export.

    Raises:
        MapetError: the folder is not empty, or a program differs from the model.
    """
    config = {
        "architecture": UPERNET,
        **AN_EXPORT,
        "num_classes": len(classes),
        "label_names": list(classes),
        "model_args": dict(model_args),
        "pretrained_cfg": {
            "input_size": [model.in_chans, *model.img_size],
            "interpolation": "bilinear",
            "mean": list(mean),
            "std": list(std),
        },
    }
    target = folder.resolve()
    with replacing(target, overwrite) as new:
        text = segmentation_card(model, target.name, config, notes, formats)
        write_files(new, model, config, text, formats, dense=True)
    return folder


def is_segmenter(folder: Path) -> bool:
    """Whether the folder holds an exported segmentation model."""
    return (folder / CONFIG).is_file() and read_config(folder).get("architecture") == UPERNET


def read_segmenter(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and config of an exported segmentation model.

    Raises:
        MapetError: its files were changed.
    """
    verify(folder)
    return load_file(folder / WEIGHTS), read_config(folder)
