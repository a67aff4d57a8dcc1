"""What an encoder has learned so far: measured during a pre-training, without changing it."""

import csv
import io
import os
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mapet.config.evaluate import FeatureSettings
from mapet.config.runtime import PretrainRuntime
from mapet.utils.errors import MapetError, reason
from mapet.utils.io import replace_file, sync
from mapet.utils.log import log

if TYPE_CHECKING:
    from torch import Tensor

    from mapet.data.dataset import ImageDataset
    from mapet.data.loader import Shuffled
    from mapet.engine.run import Run
    from mapet.method.encoder import Encoder

FILE, BEST = "probes.csv", "best.safetensors"
NAMES = ("step", "epoch", "rank", "variance", "knn", "knn_low", "knn_high", "guess", "images")
WORSE = {"knn": "accuracy", "rank": "effective rank"}


def labelled_data(data: str, runtime: PretrainRuntime) -> str:
    """The labelled images that k-NN reads: given ones, or those of the training if they have two splits; else "".

    Raises:
        MapetError: given ones without labels, or ``keep_best`` by k-NN without any.
    """
    from mapet.data.dataset import has_held_out, require_labels, train_and_test

    found = runtime.probe_data or (data if runtime.probe_every and has_held_out(data) else "")
    if found:
        require_labels(*train_and_test(found))
    elif runtime.keep_best == "knn":
        raise MapetError("--keep-best knn needs labelled images: give --probe-data.")
    return found


def probe(
    encoder: "Encoder", images: "Shuffled", labelled: str, runtime: PretrainRuntime, seed: int
) -> dict[str, float]:
    """Label-free figures of the encoder, and with ``labelled`` its k-NN accuracy.

    Args:
        encoder: in any mode, which is restored.
        images: of the training.
        labelled: a labelled data set, or "".
        runtime: how many images, and how they are read.
        seed: of the choice of images.

    Returns:
        ``rank``: effective rank of the features (``evals.features.effective_rank``; RankMe, Garrido et al., arXiv
        2210.02885, leaves the mean in); ``variance``: mean over the channels of the variance of features of unit
        length, times the width (1 if they point anywhere, 0 if all are equal); ``knn``, ``knn_low``, ``knn_high``:
        top-1 accuracy and its 95 % interval; ``guess``: that of always naming the most frequent training class, which
        may be below 1 / classes on the test images drawn; ``images``: their number.
    """
    import torch
    from torch.nn import functional as F

    from mapet.data.dataset import train_and_test
    from mapet.evals.features import effective_rank
    from mapet.evals.knn import knn

    devices = [parameter.device for parameter in encoder.parameters() if parameter.is_cuda][:1]
    with torch.random.fork_rng(devices=devices):
        indices = some(images.indices, runtime.probe_images, seed)
        features, _ = _read(encoder, images.source, indices, runtime)
        directions = F.normalize(features.double(), dim=1)
        variance = float(directions.var(dim=0, unbiased=False).mean() * features.shape[1])
        found = {"rank": effective_rank(features), "variance": variance}
        if labelled:
            splits = train_and_test(labelled)
            chosen = (some(torch.arange(len(split)), runtime.probe_images, seed) for split in splits)
            train, test = (_read(encoder, *pair, runtime) for pair in zip(splits, chosen, strict=True))
            classes = len(splits[0].classes)
            score = knn(train, test, classes=classes)["top1"]
            most = train[1].bincount(minlength=classes).argmax()
            guess = float((test[1] == most).double().mean())
            found |= {"knn": score.value, "knn_low": score.low, "knn_high": score.high, "guess": guess}
            found["images"] = float(score.count)
    return found


def record(run: "Run", step: int, epoch: float, found: Mapping[str, float]) -> None:
    """Log what was measured and add it to ``probes.csv`` and TensorBoard; later rows, of a damaged end, are dropped."""
    from torch.utils.tensorboard import SummaryWriter

    line = f"effective rank {found['rank']:.1f}"
    if "knn" in found:
        interval = f"{found['knn_low']:.1%} - {found['knn_high']:.1%}"
        guess = f"guess {found['guess']:.1%}, the most frequent training class among {found['images']:,.0f} test images"
        line = f"k-NN {found['knn']:.1%} ({interval}; {guess}), {line}"
    log.info(f"probe     epoch {epoch:g}: {line}")
    row = {"step": step, "epoch": epoch, **found}
    kept = [earlier for earlier in history(run) if earlier["step"] < step]
    text = io.StringIO()
    writer = csv.DictWriter(text, NAMES, lineterminator="\n")
    writer.writeheader()
    writer.writerows([*kept, row])
    replace_file(run.folder / FILE, text.getvalue())
    try:
        with SummaryWriter(run.folder / "tensorboard") as board:
            for name, value in found.items():
                board.add_scalar(f"probe/{name}", value, step)
    except OSError as error:
        log.info(f"note      tensorboard/ is not written ({reason(error)}); {FILE} is")


def history(run: "Run") -> list[dict[str, float]]:
    """The rows of ``probes.csv`` by name; without a valid file none."""
    try:
        lines = csv.DictReader((run.folder / FILE).read_text(encoding="utf-8").splitlines())
        rows = [{name: float(value) for name, value in line.items() if value} for line in lines]
        return [row for row in rows if {"step", "epoch", "rank"} <= row.keys()]
    except (OSError, ValueError, TypeError, AttributeError):
        return []


def keep_best(run: "Run", name: str, step: int) -> None:
    """Copy the last checkpoint to ``best.safetensors`` if the last row of ``probes.csv`` is the best so far."""
    rows = history(run)
    if not rows or rows[-1]["step"] != step or any(row.get(name, 0) >= rows[-1].get(name, 0) for row in rows[:-1]):
        return
    best = run.checkpoints / BEST
    part = best.with_suffix(".partial")
    shutil.copyfile(run.last, part)
    sync(part)
    os.replace(part, best)
    sync(best.parent)
    log.info(f"best      {WORSE[name]} so far: {best.name}")


def some(indices: "Tensor", count: int, seed: int) -> "Tensor":
    """``count`` of the indices, ascending, drawn by the seed."""
    from mapet.utils.rng import random_bits

    return indices[random_bits(seed, 0x5042, indices).argsort(stable=True)[:count].sort().values]


def _read(
    encoder: "Encoder", source: "ImageDataset", indices: "Tensor", runtime: PretrainRuntime
) -> "tuple[Tensor, Tensor]":
    """Features (N, F), the mean of the patches, and labels (N,)."""
    from mapet.api.features import batches
    from mapet.data.unreadable import UnreadableImages
    from mapet.evals.features import features

    settings = FeatureSettings(accelerator=runtime.accelerator, workers=runtime.workers)
    bad = UnreadableImages(len(indices), runtime.max_bad_fraction)
    return features(encoder, batches(source, indices, encoder, settings, bad), pool="avg")
