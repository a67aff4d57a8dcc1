"""The model of a segmentation training, its optimizer and training stream, and the model of a run."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mapet.build.finetune import load_trained, require_fits
from mapet.config.segmentation import SegmentRecipe
from mapet.data.augment import normalize, to_float
from mapet.data.decode import Batch
from mapet.data.device import to_device
from mapet.data.loader import Shuffled, Stream
from mapet.data.scene import VOID
from mapet.engine.run import Run, prefixed
from mapet.evals.dense import resampled
from mapet.evals.iou import IGNORED
from mapet.evals.segmentation import Segmenting
from mapet.evals.upernet import Segmenter
from mapet.interop.segmenter import read_segmenter
from mapet.interop.timm import arguments
from mapet.method.encoder import Encoder
from mapet.utils.errors import MapetError, reason
from mapet.utils.io import read_json, replace_file
from mapet.utils.rng import exact, random_bits

SEED = 0x5E63  # salt
POWER = 1.0  # of the learning rate's polynomial


def segmenter_over(found: Encoder, t: SegmentRecipe, classes: int) -> Segmenter:
    """A segmentation model with the blocks of ``found``, at the recipe's image size and drop path; the rest is new.

    Fixed positions become learned ones.

    Raises:
        MapetError: images that are not square RGB, or an image size that the patches do not tile.
    """
    side = t.backbone.image_size or found.img_size[0]
    require_fits(found, side, found.num_classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(t.seed)
        model = Segmenter(
            num_classes=classes,
            channels=t.decoder.channels,
            auxiliary_channels=t.decoder.auxiliary_channels,
            **{**arguments(found), "img_size": side, "drop_path_rate": t.drop_path},
        )
    weights = {n: p for n, p in found.state_dict().items() if not n.startswith(("head.", "norm.", "fc_norm."))}
    weights["pos_embed"] = resampled(weights["pos_embed"], found.grid, model.grid)
    model.load_state_dict(weights, strict=False)
    return model


def begin(run: Run, model: Segmenter, t: SegmentRecipe, about: Mapping[str, Any]) -> None:
    """Write the model's architecture and what is known ``about`` it, and its weights as checkpoint 0."""
    replace_file(run.segmenter, json.dumps({**about, "model": segmenter_arguments(model)}, indent=1) + "\n")
    objective = Segmenting(model, t.decoder.auxiliary_weight)
    averaged = [(name, p.clone()) for name, p in objective.named_parameters() if t.optimization.ema_decay]
    run.save(0, {**prefixed("model", objective.state_dict().items()), **prefixed("ema", averaged)})


def segmenter_arguments(model: Segmenter) -> dict[str, Any]:
    """What ``Segmenter`` is called with for a model of this architecture, JSON-ready."""
    own = ("num_classes", "channels", "auxiliary_channels", "drop_path_rate")
    return {**arguments(model), **{name: getattr(model, name) for name in own}}


def shaped(run: Run) -> tuple[Segmenter, dict[str, Any]]:
    """A model of a run's architecture, its weights arbitrary, and the content of ``segmenter.json``.

    Raises:
        MapetError: not a segmentation.
    """
    if not run.segmenter.is_file():
        raise MapetError(f"{run.folder} holds no segmentation model: there is no {run.segmenter.name} in it.")
    content = read_json(run.segmenter, "a segmentation")
    try:
        model = Segmenter(**content["model"])
        model.classes = tuple(map(str, content["classes"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MapetError(f"{run.segmenter} is damaged ({reason(error)}): restore it, or train again.") from error
    return model, content


def load_run_segmenter(folder: str | Path) -> Segmenter:
    """The model of a run's last checkpoint in evaluation mode; of its moving average, if it has one.

    Raises:
        MapetError: no segmentation, no checkpoint yet, or one that does not fit.
    """
    run = Run.open(folder)
    model, _ = shaped(run)
    load_trained(Segmenting(model), run.last, run.segmenter)
    return model.eval()


def load_exported_segmenter(folder: Path) -> Segmenter:
    """The model of an export in evaluation mode.

    Raises:
        MapetError: an export that was changed or does not fit together.
    """
    weights, config = read_segmenter(folder)
    try:
        model = Segmenter(**config["model_args"])
        model.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise MapetError(f"The weights of {folder} do not fit its config.json: export again.") from error
    model.classes = tuple(map(str, config["label_names"]))
    return model.eval()


class SegmentBatches(Stream):
    """The training stream: ``Shuffled`` images and masks, its two views, as arguments of ``Segmenting.forward``."""

    def __init__(self, t: SegmentRecipe, shuffled: Shuffled, device: torch.device) -> None:
        self.seed, self.shuffled, self.device = t.seed, shuffled, device

    def __call__(self, start: int) -> Iterator[dict[str, Tensor]]:
        """The batches from step ``start`` on, on the device."""
        return map(self.prepared, self.shuffled(start))

    def prepared(self, batch: Batch) -> dict[str, Tensor]:
        """One batch as ``images`` (B, 3, H, W) normalised, ``targets`` (B, H, W) and ``seed`` (B,)."""
        targets = batch.views[1][:, 0].long()
        seed = random_bits(self.seed, SEED, batch.epoch, batch.index)
        return {
            "images": normalize(to_float(batch.images, self.device)),
            "targets": to_device(targets.masked_fill(targets == VOID, IGNORED), self.device),
            "seed": to_device(seed, exact(self.device)),
        }
