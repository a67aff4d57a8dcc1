"""Measure a frozen encoder by segmentation: linear and k-NN probes of its patches, mIoU."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.api.protocols import protocol_names
from mapet.config.flat import updated
from mapet.config.segmentation import SegmentProbeSettings
from mapet.utils.log import log

if TYPE_CHECKING:
    from torch import Tensor

    from mapet.data.segmentation import SegmentationSet
    from mapet.evals.score import Score
    from mapet.evals.segment_probe import Classify, Pair, Patches
    from mapet.method.encoder import Encoder

GUESS = "guess"  # always the class with the most training pixels


@dataclass(frozen=True)
class SegmentProtocol:
    """``fit`` makes a classifier of patches; ``describe`` is the text under which its scores are reported."""

    fit: "Callable[[Patches, SegmentProbeSettings], Classify]"
    describe: Callable[[SegmentProbeSettings], str]


def _linear(train: "Patches", s: SegmentProbeSettings) -> "Classify":
    from mapet.evals.segment_probe import linear_probe

    return linear_probe(train, s.seed)


def _knn(train: "Patches", s: SegmentProbeSettings) -> "Classify":
    from mapet.evals.segment_probe import knn_probe

    return knn_probe(train, k=s.k, temperature=s.temperature)


def _size(s: SegmentProbeSettings) -> str:
    return f", shorter side {s.image_size}" if s.image_size else ""


SEGMENT_PROTOCOLS = {
    "segment-linear": SegmentProtocol(
        _linear,
        lambda s: f"segmentation, logistic regression by L-BFGS, {s.max_patches:,} patches{_size(s)}",
    ),
    "segment-knn": SegmentProtocol(
        _knn,
        lambda s: (
            f"segmentation, k-NN of patches, k = {s.k}, T = {s.temperature:g}, cosine, {s.max_patches:,} patches"
            + _size(s)
        ),
    ),
}


def segment_probe(
    source: str | Path,
    data: str | Path,
    protocols: str | Iterable[str] = tuple(SEGMENT_PROTOCOLS),
    *,
    out: str | Path | None = None,
    settings: SegmentProbeSettings | None = None,
    **changes: Any,
) -> "dict[str, dict[str, Score]]":
    """Segment a set by the frozen encoder of ``source``: every patch is classified by its feature, linearly or by k-NN.

    Images keep their aspect ratio; positions are interpolated. The patches' scores are resized to the mask.

    Args:
        source: FROM: a run or export folder, a checkpoint file, or a timm model.
        data: a segmentation set, as for ``segment``.
        protocols: names of ``SEGMENT_PROTOCOLS``: segment-linear, segment-knn.
        out: JSON file to which the scores are added; None: a run's ``scores.json``, and otherwise no file.
        settings: by default ``SegmentProbeSettings()``.
        changes: settings by name, as ``k=10`` or ``image_size=448``.

    Returns:
        For each protocol, and for the ``"guess"`` of always naming the most frequent class: ``mIoU`` and pixel
        ``accuracy``, and the IoU of each class as ``IoU NAME``, with intervals over test images.

    Raises:
        MapetError: a FROM or settings that do not fit, no pairs, masks of another size, labels out of range.
    """
    from mapet.api.evaluate import saved, scores_file, subject
    from mapet.api.scores import entries, plain

    s = updated(settings or SegmentProbeSettings(), **changes)
    names = protocol_names(protocols, SEGMENT_PROTOCOLS, "segmentation protocol")
    start = subject(source, random=s.random, num_heads=s.num_heads)
    if file := scores_file(out, start):
        entries(file)  # refuses a file of something else before the work
    log.info(f"encoder   {start.origin}")
    found = measure(start.encoder, data, names, s)
    about = {"step": start.step, "data": str(data), "limit": s.max_images}
    for name in names:
        if file:
            text = SEGMENT_PROTOCOLS[name].describe(s)
            file = saved(file, {"from": start.origin, "protocol": text, **about, **plain(found[name])})
    return found


def measure(
    encoder: "Encoder", data: str | Path, names: Iterable[str], s: SegmentProbeSettings
) -> "dict[str, dict[str, Score]]":
    """The scores of the protocols and of the guess; arguments and errors as ``segment_probe``."""
    from mapet.build.segmentation_set import both_splits
    from mapet.engine.distributed import pick_device
    from mapet.evals.iou import iou_scores
    from mapet.evals.segment_probe import majority, probe_overlaps, training_patches

    train, test = both_splits(data, s.reduce_zero_label)
    chosen, device, classes = _chosen(train, s), pick_device(s.accelerator), len(train.classes)
    log.info(f"data      {data}: {len(chosen):,} training, {len(test):,} test images, {classes} classes")
    patches = training_patches(
        encoder,
        _pairs(train, chosen, encoder, s, "train"),
        classes,
        per_image=-(-s.max_patches // len(chosen)),
        seed=s.seed,
        device=device,
    )
    probes = {GUESS: majority(patches), **{name: SEGMENT_PROTOCOLS[name].fit(patches, s) for name in names}}
    tests = _pairs(test, range(len(test)), encoder, s, "test")
    counts = probe_overlaps(encoder, tests, probes, classes, device)
    found = {name: iou_scores(one, train.classes) for name, one in counts.items()}
    guess, most = found[GUESS], train.classes[int(patches.pixels.argmax())]
    log.info(f"guess     mIoU {guess['mIoU']}, {guess['accuracy'].value:.1%} of pixels: always {most}")
    return found


def _chosen(train: "SegmentationSet", s: SegmentProbeSettings) -> list[int]:
    """The training images, ``max_images`` of them at random."""
    import torch

    from mapet.utils.rng import random_bits

    order = random_bits(s.seed, torch.arange(len(train))).argsort(stable=True)
    return sorted(order[: s.max_images].tolist())


def _pairs(
    split: "SegmentationSet", indices: Iterable[int], encoder: "Encoder", s: SegmentProbeSettings, label: str
) -> "Iterator[Pair]":
    """Normalised images in whole patches, and targets of the masks' own size."""
    import numpy as np
    import torch
    from PIL import Image

    from mapet.data.augment import normalize, to_float
    from mapet.engine.progress import Meter
    from mapet.evals.dense import patch_size_of

    side, indices = s.image_size or min(encoder.img_size), list(indices)
    with Meter(label, len(indices)) as meter:
        for done, i in enumerate(indices, 1):
            image, targets = split.pair(i)
            height, width = patch_size_of((image.height, image.width), side, encoder.patch_size)
            pixels: Tensor = torch.from_numpy(np.array(image.resize((width, height), Image.Resampling.BICUBIC)))
            yield normalize(to_float(pixels.permute(2, 0, 1)[None]))[0], torch.from_numpy(targets)
            if meter.due(done):
                meter.update(done)
