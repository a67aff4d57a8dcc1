"""Export an encoder, a classifier or a segmentation model for other libraries."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.api.encoders import LoadedEncoder, load_from
from mapet.api.training_notes import segmentation_notes, training_notes
from mapet.config.finetune import FinetuneRecipe
from mapet.utils.errors import MapetError, nearest
from mapet.utils.owned import require_apart

if TYPE_CHECKING:
    from mapet.engine.run import Run

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
    """Write the encoder of FROM, or its classifier or segmentation model, as a folder for other libraries.

    ``timm.create_model("local-dir:OUT", pretrained=True)`` loads it, and transformers' ``AutoModel``. The other formats
    lie beside: ``onnx/model.onnx`` and ``torch/model.pt2`` take images (B, 3, H, W), normalised, of any B, and give
    features (B, 1 + L, D), CLS first, and with a head logits (B, classes). Each is compared with the encoder first.
    timm has no segmentation models: of one the folder holds the weights, which ``load_segmenter`` reads, and the
    programs, from images of the crop's size to logits (B, classes, H, W).

    Args:
        source: FROM: a run or export folder, or a checkpoint file.
        out: folder to write; None: ``export/timm`` in the run's folder, or ``export/segmenter``.
        to: the formats: timm (with transformers; always written but for a segmentation model), onnx, torch.
        overwrite: replace an earlier export; only files that mapet wrote are deleted.
        num_heads: attention heads of a checkpoint file, which does not store them; None: width / 64.
        push: upload the folder to this private repository, USER/NAME, of the Hugging Face Hub; None: nothing is sent.

    Returns:
        The folder.

    Raises:
        MapetError: a FROM that cannot be loaded, an unknown or missing library, a folder in use or around FROM, a
            program that computes other features, or an upload that failed.
    """
    from mapet.engine.run import Run
    from mapet.interop import graphs, hub

    formats = [name for name in _targets(to) if name != "timm"]
    for name in formats:
        graphs.require_packages(name)
    if push is not None:
        hub.require_hub(push)
    run = Run(Path(source).expanduser())
    if run.segmenter.is_file():
        folder = _export_segmenter(run, out, formats, overwrite)
    else:
        folder = _export_encoder(source, out, formats, overwrite, num_heads)
    if push is not None:
        hub.push(folder, push, formats)
    return folder


def _export_encoder(
    source: str | Path, out: str | Path | None, formats: list[str], overwrite: bool, num_heads: int | None
) -> Path:
    from mapet.data.augment import IMAGENET_MEAN, IMAGENET_STD
    from mapet.interop.timm import to_timm

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
        notes=training_notes(found, source),
        formats=formats,
        overwrite=overwrite,
    )


def _export_segmenter(run: "Run", out: str | Path | None, formats: list[str], overwrite: bool) -> Path:
    """The same of a segmentation."""
    from mapet.build.segment import load_run_segmenter, segmenter_arguments
    from mapet.data.augment import IMAGENET_MEAN, IMAGENET_STD
    from mapet.interop.segmenter import write_segmenter

    if not formats:
        raise MapetError(f"FROM = {run.folder} holds a segmentation model, which timm lacks: --to onnx, torch or both.")
    folder = Path(out).expanduser() if out is not None else run.folder / "export" / "segmenter"
    require_apart(folder, FROM=run.folder)
    model = load_run_segmenter(run.folder)
    return write_segmenter(
        model,
        folder,
        model_args=segmenter_arguments(model),
        classes=model.classes,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        notes=segmentation_notes(run),
        formats=formats,
        overwrite=overwrite,
    )


def loading_text(folder: str | Path) -> str:
    """What an exported folder holds, and the lines of Python that load it."""
    from mapet.interop.card import loading_lines
    from mapet.interop.graphs import FILES
    from mapet.interop.segmenter import is_segmenter

    if is_segmenter(Path(folder)):
        kind, lines = "segmentation model", f'import mapet\nmodel = mapet.load_segmenter("{folder}")'
    else:
        classifies = _config(Path(folder))["num_classes"] > 0
        kind, lines = "classifier" if classifies else "encoder", loading_lines(Path(folder), classifies=classifies)
    programs = [str(Path(folder) / file) for file in FILES.values() if (Path(folder) / file).is_file()]
    more = f"\n\nREADME.md there shows how to load {' and '.join(programs)}" if programs else ""
    return f"{folder} holds the {kind}; load it by\n\n{lines}{more}"


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
