"""What a fine-tuning reads: labelled images to learn from and to be tested on."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mapet.api.encoders import load_start
from mapet.api.scores import entries, write
from mapet.api.training import pin, require_batch
from mapet.config.finetune import FinetuneRecipe
from mapet.config.recipe import Runtime
from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import Tensor

    from mapet.build.finetune import FinetuneBatches
    from mapet.data.dataset import ImageDataset
    from mapet.data.policy import Policy
    from mapet.engine.run import Run
    from mapet.evals.score import Score
    from mapet.method.encoder import Classifier

BATCH = 256  # test images at a time


def validate(t: FinetuneRecipe, runtime: Runtime) -> "tuple[Classifier, dict[str, Any]]":
    """Find what cannot work before anything is written; the classifier at its start, and what is known about it.

    Raises:
        MapetError: images, labels, settings, a device or a FROM that cannot be had or do not fit.
    """
    from mapet.build.finetune import classifier_over
    from mapet.data.dataset import train_and_test
    from mapet.data.decode import require_shown
    from mapet.data.policy import Centre, transform
    from mapet.engine.distributed import pick_device
    from mapet.utils.view import CenterCropResize

    source, tests = train_and_test(t.data)
    if not source.classes:
        raise MapetError(f"{source.name} has no labels: give --data, a folder with sub-folders, one per class.")
    batch = t.optimization.batch_size
    require_batch(source, t.max_images, batch)
    processes = runtime.processes
    if t.mixes and batch % (2 * processes):
        raise MapetError(
            f"--batch-size {batch} does not fit: mixup and cutmix take images in pairs, so it must be a multiple of "
            f"{2 * processes} for {processes} processes."
        )
    pick_device(runtime.accelerator)
    transform(_policy(t), CenterCropResize((32, 32)))
    start = load_start(t)
    classifier = classifier_over(start.encoder, t, len(source.classes))
    require_shown(source, [CenterCropResize(classifier.img_size)], _policy(t))
    require_shown(tests, [CenterCropResize(classifier.img_size)], Centre(t.crop_pct))
    return classifier, {"from": start.origin, "classes": source.classes}


def finetune_batches(run: "Run", t: FinetuneRecipe, runtime: Runtime, fabric: "Fabric") -> "FinetuneBatches":
    """The training stream of a fine-tuning, its images and labels pinned.

    Raises:
        MapetError: images or labels that are others than when the run began.
    """
    from mapet.build.batches import chosen
    from mapet.build.finetune import FinetuneBatches, shaped
    from mapet.data.dataset import train_and_test
    from mapet.data.loader import Shuffled
    from mapet.data.unreadable import UnreadableImages
    from mapet.engine.distributed import pick_workers
    from mapet.utils.view import CenterCropResize

    source, classifier = train_and_test(t.data)[0], shaped(run)[0]
    indices = chosen(source, t.max_images, t.seed)
    shuffled = Shuffled(
        source,
        CenterCropResize(classifier.img_size),
        crops=_policy(t),
        batch_size=t.optimization.batch_size,
        epochs=t.optimization.epochs,
        seed=t.seed,
        bad=UnreadableImages(len(indices), runtime.max_bad_fraction, run.unreadable_images),
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        workers=pick_workers(runtime.workers, fabric.device),
        indices=indices,
        device=fabric.device,
    )
    if fabric.is_global_zero:
        told = "other images or labels: restore them, or begin a new run."
        pin(run, source, indices, {"classes": list(source.classes)}, told, labels=True)
    return FinetuneBatches(t, shuffled, classifier.num_classes, fabric.device)


def _policy(t: FinetuneRecipe) -> "Policy":
    from mapet.data.policy import Policy

    a = t.augmentation
    return Policy(t.seed, a.scale, a.ratio, a.hflip, a.auto_augment, a.color_jitter)


def evaluate(classifier: "Classifier", t: FinetuneRecipe, runtime: Runtime, fabric: "Fabric") -> "dict[str, Score]":
    """``top1`` and, with more than five classes, ``top5`` over all test images, each process taking its share.

    Raises:
        MapetError: too many test images cannot be read.
    """
    from mapet.data.dataset import train_and_test
    from mapet.evals.finetune import placed, rank_histogram
    from mapet.evals.score import tops

    source = train_and_test(t.data)[1]
    counts = rank_histogram(classifier, _tests(source, classifier, t, runtime, fabric), fabric.device)
    return tops(placed(fabric.all_reduce(counts, reduce_op="sum")), classifier.num_classes)


def _tests(
    source: "ImageDataset", classifier: "Classifier", t: FinetuneRecipe, runtime: Runtime, fabric: "Fabric"
) -> "Iterator[tuple[Tensor, Tensor]]":
    """This process's share of the test images, normalised, with labels."""
    import torch

    from mapet.data.augment import normalize, to_float
    from mapet.data.decode import decode
    from mapet.data.policy import Centre
    from mapet.data.unreadable import UnreadableImages
    from mapet.engine.distributed import pick_workers
    from mapet.engine.progress import Meter
    from mapet.utils.view import CenterCropResize

    indices = torch.arange(len(source)).tensor_split(fabric.world_size)[fabric.global_rank]
    groups, done = ((0, part.tolist()) for part in indices.split(BATCH)), 0
    bad, workers = (
        UnreadableImages(len(indices), runtime.max_bad_fraction),
        pick_workers(runtime.workers, fabric.device),
    )
    looks = Centre(t.crop_pct)
    with Meter("test", len(indices)) as meter:
        for batch in decode(
            source, [CenterCropResize(classifier.img_size)], groups, crops=looks, workers=workers, bad=bad
        ):
            labels = torch.tensor([source.label(i) for i in batch.index.tolist()], dtype=torch.int64)
            yield normalize(to_float(batch.images, fabric.device)), labels
            done += len(batch.index)
            if fabric.is_global_zero and meter.due(done):
                meter.update(done)


def record(run: "Run", about: Mapping[str, Any], scores: "Mapping[str, Score]") -> None:
    """Write the scores into the run's ``scores.json``, in the place of those of the same protocol and step."""
    out, same = run.folder / "scores.json", ("protocol", "step", "data")
    kept = [entry for entry in entries(out) if any(entry[name] != about[name] for name in same)]
    write(out, [*kept, {**about, **{name: asdict(score) for name, score in scores.items()}}])
