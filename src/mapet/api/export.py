"""Export an encoder or a classifier for other libraries."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mapet.api.encoders import LoadedEncoder, load_from
from mapet.config.finetune import FinetuneRecipe, protocol
from mapet.config.recipe import Recipe
from mapet.utils.errors import MapetError, nearest
from mapet.utils.owned import require_apart

TARGETS = ("timm",)


def export(
    source: str | Path,
    out: str | Path | None = None,
    to: str | Iterable[str] = TARGETS,
    overwrite: bool = False,
    *,
    num_heads: int | None = None,
) -> Path:
    """Write the encoder of FROM, or its classifier if it has a head, as a folder for other libraries.

    ``timm.create_model("local-dir:OUT", pretrained=True)`` loads it.

    Args:
        source: FROM: a run or export folder, or a checkpoint file.
        out: folder to write; None: ``export/timm`` in the run's folder.
        to: the libraries: timm.
        overwrite: replace an earlier export; only files that mapet wrote are deleted.
        num_heads: attention heads of a checkpoint file, which does not store them; None: width / 64.

    Returns:
        The folder.

    Raises:
        MapetError: a FROM that cannot be loaded, an unknown library, or a folder in use or around FROM.
    """
    from mapet.data.augment import IMAGENET_MEAN, IMAGENET_STD
    from mapet.interop.timm import to_timm

    _check_targets(to)
    found = load_from(source, num_heads=num_heads)
    if out is None and found.run is None:
        raise MapetError(f"--out is missing: FROM is {found.origin}, and only a run has a folder for its exports.")
    base = found.run.folder if found.run else Path(source).expanduser()
    folder = Path(out).expanduser() if out is not None else base / "export" / "timm"
    require_apart(folder, FROM=source)
    return to_timm(
        found.encoder,
        folder,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        crop_pct=_crop_pct(found, base),
        notes=_notes(found),
        overwrite=overwrite,
    )


def loading_text(folder: str | Path) -> str:
    """What an exported folder holds, and the lines of Python that load it."""
    from mapet.interop.timm import loading_lines

    classifies = _config(Path(folder))["num_classes"] > 0
    lines = loading_lines(Path(folder), classifies=classifies)
    return f"{folder} holds the {'classifier' if classifies else 'encoder'}; load it by\n\n{lines}"


def _check_targets(to: str | Iterable[str]) -> None:
    """Refuse unknown libraries; ``to`` is a list or one string with commas."""
    for target in to.split(",") if isinstance(to, str) else to:
        if target.strip() not in TARGETS:
            raise MapetError(f'Cannot export to "{target}".{nearest(target, TARGETS)}')


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


def _notes(found: LoadedEncoder) -> dict[str, Any]:
    """How the encoder was trained, for the model card."""
    if found.run is None or found.recipe is None:
        return {"from": found.origin}
    if isinstance(found.recipe, Recipe):
        o = found.recipe.objective
        return {
            "objective": o.name,
            "mask ratio": o.mask_ratio,
            "data": found.recipe.data,
            "steps": found.step,
        }
    about = json.loads(found.run.classifier.read_text())
    return {
        "protocol": protocol(found.recipe),
        "from": about["from"],
        "data": found.recipe.data,
        "steps": found.step,
        "classes, in the order of the logits": ", ".join(about["classes"]),
    }
