"""``mapet export``: an encoder for other libraries."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.utils.owned import require_apart

if TYPE_CHECKING:
    from mapet.method.encoder import Encoder


def export(run: Path, out: Path, *, overwrite: bool = False) -> Path:
    """Write the encoder of a run's last checkpoint, or a fine-tuning's classifier, as a folder for timm.

    ``timm.create_model("local-dir:OUT", pretrained=True)`` loads it.

    Raises:
        MapetError: no run or checkpoint, or a folder in use or around the run.
    """
    from mapet.data.augment import IMAGENET_MEAN, IMAGENET_STD
    from mapet.interop.timm import to_timm

    require_apart(out, FROM=run)
    encoder, notes, crop_pct = _classifier(run) if _fine_tuned(run) else _encoder(run)
    return to_timm(
        encoder, out, mean=IMAGENET_MEAN, std=IMAGENET_STD, crop_pct=crop_pct, notes=notes, overwrite=overwrite
    )


def _fine_tuned(run: Path) -> bool:
    from mapet.engine.run import Run

    return Run(run).classifier.is_file()


def _encoder(run: Path) -> "tuple[Encoder, dict[str, Any], float]":
    from mapet.build.pretrain import load_run_encoder

    encoder, recipe, step = load_run_encoder(run)
    o = recipe.objective
    return encoder, {"objective": o.objective, "mask ratio": o.mask_ratio, "data": recipe.data, "steps": step}, 1.0


def _classifier(run: Path) -> "tuple[Encoder, dict[str, Any], float]":
    from mapet.build.finetune import load_run_classifier, shaped
    from mapet.config.finetune import protocol
    from mapet.engine.run import Run

    (classifier, t, step), about = load_run_classifier(run), shaped(Run(run))[1]
    notes = {"protocol": protocol(t), "from": about["from"], "data": t.data, "steps": step}
    return classifier, {**notes, "classes, in the order of the logits": ", ".join(about["classes"])}, t.crop_pct
