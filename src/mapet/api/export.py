"""Export an encoder or a classifier for other libraries."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mapet.api.encoders import LoadedEncoder, load_from
from mapet.api.training_notes import training_notes
from mapet.config.finetune import FinetuneRecipe
from mapet.utils.errors import MapetError, nearest
from mapet.utils.owned import require_apart

TARGETS = ("timm", "onnx", "torch")


def export(
    source: str | Path,
    out: str | Path | None = None,
    to: str | Iterable[str] = ("timm",),
    overwrite: bool = False,
    *,
    num_heads: int | None = None,
    push: str | None = None,
) -> Path:
    """Write the encoder of FROM, or its classifier if it has a head, as a folder for other libraries.

    ``timm.create_model("local-dir:OUT", pretrained=True)`` loads it, and transformers' ``AutoModel``. The other formats
    lie beside: ``onnx/model.onnx`` and ``torch/model.pt2`` take images (B, 3, H, W), normalised, of any B, and give
    features (B, 1 + L, D), CLS first, and with a head logits (B, classes). Each is compared with the encoder first.

    Args:
        source: FROM: a run or export folder, or a checkpoint file.
        out: folder to write; None: ``export/timm`` in the run's folder.
        to: the formats: timm (with transformers; always written), onnx, torch.
        overwrite: replace an earlier export; only files that mapet wrote are deleted.
        num_heads: attention heads of a checkpoint file, which does not store them; None: width / 64.
        push: upload the folder to this private repository, USER/NAME, of the Hugging Face Hub; None: nothing is sent.

    Returns:
        The folder.

    Raises:
        MapetError: a FROM that cannot be loaded, an unknown or missing library, a folder in use or around FROM, a
            program that computes other features, or an upload that failed.
    """
    from mapet.data.augment import IMAGENET_MEAN, IMAGENET_STD
    from mapet.interop import graphs, hub
    from mapet.interop.timm import to_timm

    formats = [name for name in _targets(to) if name != "timm"]
    for name in formats:
        graphs.require_packages(name)
    if push is not None:
        hub.require_hub(push)
    found = load_from(source, num_heads=num_heads)
    if out is None and found.run is None:
        raise MapetError(f"--out is missing: FROM is {found.origin}, and only a run has a folder for its exports.")
    base = found.run.folder if found.run else Path(source).expanduser()
    folder = Path(out).expanduser() if out is not None else base / "export" / "timm"
    require_apart(folder, FROM=source)
    to_timm(
        found.encoder,
        folder,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        crop_pct=_crop_pct(found, base),
        notes=training_notes(found, source),
        formats=formats,
        overwrite=overwrite,
    )
    if push is not None:
        hub.push(folder, push, formats)
    return folder


def loading_text(folder: str | Path) -> str:
    """What an exported folder holds, and the lines of Python that load it."""
    from mapet.interop.card import loading_lines
    from mapet.interop.graphs import FILES

    classifies = _config(Path(folder))["num_classes"] > 0
    lines = loading_lines(Path(folder), classifies=classifies)
    programs = [str(Path(folder) / file) for file in FILES.values() if (Path(folder) / file).is_file()]
    more = f"\n\nREADME.md there shows how to load {' and '.join(programs)}" if programs else ""
    return f"{folder} holds the {'classifier' if classifies else 'encoder'}; load it by\n\n{lines}{more}"


def _targets(to: str | Iterable[str]) -> list[str]:
    """The formats, once each; ``to`` is a list or one string with commas. Refuses unknown ones."""
    found = list(dict.fromkeys(target.strip() for target in (to.split(",") if isinstance(to, str) else to)))
    for target in found:
        if target not in TARGETS:
            raise MapetError(f'Cannot export to "{target}".{nearest(target, TARGETS)}')
    return found


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def _crop_pct(found: LoadedEncoder, source: Path) -> float:
    """The share of the shorter side that tests cut out."""
    if isinstance(found.recipe, FinetuneRecipe):
        return found.recipe.crop_pct
    if source.is_dir() and found.run is None:
        return float(_config(source).get("pretrained_cfg", {}).get("crop_pct", 1.0))
    return 1.0
