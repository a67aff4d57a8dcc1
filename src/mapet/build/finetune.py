"""The classifier of a fine-tuning, its optimizer and training stream, and the classifier of a run."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mapet.config.file import read_run
from mapet.config.finetune import FinetuneRecipe
from mapet.config.segmentation import SegmentRecipe
from mapet.data.augment import normalize, to_float
from mapet.data.decode import Batch
from mapet.data.device import to_device
from mapet.data.loader import Shuffled, Stream
from mapet.data.policy import Erasing, Mixing
from mapet.engine.checkpoint import Checkpoint
from mapet.engine.fit import Batches
from mapet.engine.optim import Optim, adamw, layer_scale, scheduled
from mapet.engine.run import Run, parts, prefixed
from mapet.evals.dense import resampled
from mapet.evals.finetune import FineTuning
from mapet.interop.timm import arguments
from mapet.method.encoder import Classifier, Encoder
from mapet.utils.errors import MapetError, reason
from mapet.utils.io import read_json, replace_file
from mapet.utils.rng import exact, random_bits

SEED = 0xF17E  # salt
HEAD = 0.001  # factor of a new head's weights, a truncated normal of std 0.02 (BEiT); MAE's std is the same


def classifier_over(found: Encoder, t: FinetuneRecipe, classes: int) -> Classifier:
    """A classifier with the weights of ``found``, at the recipe's image size and drop path.

    The head and the norm before it are new, over the mean of the patches. If ``found`` has a head and the recipe keeps
    it, its pooling and norm are kept too. Fixed positions become learned ones, as in MAE.

    Raises:
        MapetError: a kept head of another number of classes, images that are not square RGB, or an image size that
            the patches do not tile.
    """
    keeps, side = found.num_classes > 0 and not t.fresh_head, t.backbone.image_size or found.img_size[0]
    require_fits(found, side, classes if keeps else found.num_classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(t.seed)
        model = Classifier(
            **{
                **arguments(found),
                "img_size": side,
                "drop_path_rate": t.drop_path,
                "global_pool": found.global_pool if keeps else "avg",
                "num_classes": classes,
            }
        )
    for parameter in model.head.parameters():
        parameter.data *= HEAD
    weights = dict(found.state_dict())
    for name in [name for name in weights if not keeps and name.startswith(("head.", "norm."))]:
        del weights[name]
    weights["pos_embed"] = resampled(weights["pos_embed"], found.grid, model.grid)
    model.load_state_dict(weights, strict=False)
    return model


def require_fits(found: Encoder, side: int, classes: int) -> None:
    """Require a head of so many classes, square RGB images, and a side that the patches tile.

    Raises:
        MapetError: the first that does not hold.
    """
    (height, width), patch = found.img_size, found.patch_size
    if found.num_classes != classes:
        raise MapetError(
            f"FROM has a head of {found.num_classes} classes, and the data have {classes}: "
            "give --fresh-head for a new one."
        )
    if height != width or found.in_chans != 3:
        raise MapetError(
            f"FROM takes images of {found.in_chans} × {height} × {width}, and fine-tuning has square RGB images: "
            "give another FROM."
        )
    if side % patch[0] or side % patch[1]:
        raise MapetError(
            f"--image-size must be a multiple of {patch[0]} and {patch[1]}, the size of FROM's patches, got {side}."
        )


def begin(run: Run, classifier: Classifier, t: FinetuneRecipe, about: Mapping[str, Any]) -> None:
    """Write the classifier's architecture and what is known ``about`` it, and its weights as checkpoint 0.

    From then on the run does not need FROM.
    """
    head = {"drop_path_rate": classifier.drop_path_rate, "num_classes": classifier.num_classes}
    shape = {**about, "model": {**arguments(classifier), **head}}
    replace_file(run.classifier, json.dumps(shape, indent=1) + "\n")
    objective = FineTuning(classifier)
    averaged = [(name, p.clone()) for name, p in objective.named_parameters() if t.optimization.ema_decay]
    run.save(0, {**prefixed("model", objective.state_dict().items()), **prefixed("ema", averaged)})


def shaped(run: Run) -> tuple[Classifier, dict[str, Any]]:
    """A classifier of a fine-tuning's architecture, its weights arbitrary, and the content of ``classifier.json``.

    Raises:
        MapetError: not a fine-tuning.
    """
    if not run.classifier.is_file():
        raise MapetError(f"{run.folder} holds no fine-tuning: there is no {run.classifier.name} in it.")
    content = read_json(run.classifier, "a fine-tuning")
    try:
        return Classifier(**content["model"]), content
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MapetError(f"{run.classifier} is damaged ({reason(error)}): restore it, or fine-tune again.") from error


def load_run_classifier(folder: str | Path, checkpoint: Path | None = None) -> tuple[Classifier, FinetuneRecipe, int]:
    """The classifier of a fine-tuning's checkpoint, the last by default, its recipe, and the completed steps.

    The moving average of the weights is loaded if the checkpoint has one.

    Raises:
        MapetError: no fine-tuning, no checkpoint yet, or one that does not fit.
    """
    run = Run.open(folder)
    classifier, about = shaped(run)
    checkpoint = checkpoint or run.last
    step = load_trained(FineTuning(classifier), checkpoint, run.classifier)
    t = read_run(run.recipe, FinetuneRecipe)
    classifier.classes, classifier.crop_pct = tuple(map(str, about.get("classes") or ())), t.crop_pct
    return classifier.eval(), t, step


def load_trained(objective: nn.Module, checkpoint: Path, shape: Path) -> int:
    """Load the weights of a supervised training, or their moving average if there is one.

    Args:
        objective: with the architecture that the file ``shape`` of the run describes.
        checkpoint: of the run.
        shape: for the error.

    Returns:
        The completed steps.

    Raises:
        MapetError: no checkpoint yet, or one that does not fit.
    """
    if not checkpoint.exists():
        raise MapetError(f"{shape.parent} has no checkpoint yet: let it train until the first is written.")
    found = Checkpoint(checkpoint)
    tensors = {name: found.read_finite(name) for name in found.shapes if not name.startswith("optimizer/")}
    try:
        objective.load_state_dict({**parts(tensors, "model"), **parts(tensors, "ema")})
    except RuntimeError as error:
        raise MapetError(f"{checkpoint} does not fit {shape}: was one of them changed by hand?") from error
    return found.step


def build_optim(
    t: FinetuneRecipe | SegmentRecipe, objective: nn.Module, blocks: int, batches: Batches, power: float | None = None
) -> Optim:
    """AdamW with layer decay over so many blocks, warm-up, and polynomial decay of a power; None: cosine decay."""
    o = t.optimization
    optimizer = adamw(
        objective,
        weight_decay=o.weight_decay,
        betas=o.betas,
        no_decay=o.no_decay,
        scale=layer_scale(blocks, t.layer_decay),
    )
    lr = scheduled(batches, peak=t.lr, floor=o.min_lr, start=o.warmup_lr, warmup_epochs=o.warmup_epochs, power=power)
    return Optim(optimizer, lr, o.clip_grad, o.ema_decay)


class FinetuneBatches(Stream):
    """The training stream of a fine-tuning: ``Shuffled`` images as arguments of ``FineTuning.forward``."""

    def __init__(self, t: FinetuneRecipe, shuffled: Shuffled, classes: int, device: torch.device) -> None:
        a, self.seed, self.shuffled, self.device = t.augmentation, t.seed, shuffled, device
        self.labels = torch.full((len(shuffled.source),), -1)
        self.labels[shuffled.indices] = torch.tensor([shuffled.source.label(i) for i in shuffled.indices.tolist()])
        self.erase = Erasing(t.seed, a.reprob, a.remode, a.recount)
        self.mix = Mixing(t.seed, classes, a.mixup, a.cutmix, a.mixup_prob, a.mixup_switch_prob, a.smoothing)

    def __call__(self, start: int) -> Iterator[dict[str, Tensor]]:
        """The batches from step ``start`` on, on the device."""
        return (self.prepared(step, batch) for step, batch in enumerate(self.shuffled(start), start))

    def prepared(self, step: int, batch: Batch) -> dict[str, Tensor]:
        """One batch as ``images`` (B, 3, H, W) normalised, ``targets`` (B, classes) and ``seed`` (B,)."""
        images = normalize(to_float(batch.images, self.device))
        images = self.erase(images, batch.epoch, batch.index)
        images, targets = self.mix(images, to_device(self.labels[batch.index], self.device), step)
        seed = random_bits(self.seed, SEED, batch.epoch, batch.index[: len(images)])
        return {"images": images, "targets": targets, "seed": to_device(seed, exact(self.device))}
