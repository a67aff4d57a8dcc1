"""What a fine-tuning reads: labelled images for training and for testing."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mapet.api.batch_size import require_batch
from mapet.api.encoders import load_start
from mapet.api.scores import entries, write
from mapet.config.finetune import FinetuneRecipe
from mapet.config.runtime import Runtime
from mapet.utils.errors import MapetError
from mapet.utils.log import log

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
    """Check images, labels, device and FROM before anything is written.

    Returns:
        The classifier before training, and its origin and classes.

    Raises:
        MapetError: one that does not exist or does not fit.
    """
    from mapet.build.finetune import classifier_over
    from mapet.data.dataset import require_labels, train_and_test
    from mapet.data.decode import require_shown
    from mapet.data.policy import Centre, transform
    from mapet.engine.distributed import pick_device
    from mapet.utils.view import CenterCropResize

    source, tests = train_and_test(t.data, max_pixels=t.max_pixels)
    require_labels(source, tests)
    batch = t.optimization.batch_size
    require_batch(source, t.max_images, batch)
    processes = runtime.processes
    if t.mixes and batch % (2 * processes):
        raise MapetError(
            f"--batch-size must be a multiple of {2 * processes} for {processes} processes, as mixup and cutmix pair "
            f"images; got {batch}."
        )
    pick_device(runtime.accelerator)
    transform(_policy(t), CenterCropResize((32, 32)))
    start = load_start(t)
    classifier = classifier_over(start.encoder, t, len(source.classes))
    require_shown(source, [CenterCropResize(classifier.img_size)], _policy(t))
    require_shown(tests, [CenterCropResize(classifier.img_size)], Centre(t.crop_pct))
    return classifier, {"from": start.origin, "classes": source.classes}


def finetune_batches(run: "Run", t: FinetuneRecipe, runtime: Runtime, fabric: "Fabric") -> "FinetuneBatches":
    """The training stream of a fine-tuning."""
    from mapet.build.batches import Images, choose_indices, shuffled_images
    from mapet.build.finetune import FinetuneBatches, shaped
    from mapet.data.dataset import train_and_test
    from mapet.data.unreadable import UnreadableImages
    from mapet.utils.view import CenterCropResize

    source, classifier = train_and_test(t.data, max_pixels=t.max_pixels)[0], shaped(run)[0]
    indices = choose_indices(source, t.max_images, t.seed)
    unreadable = UnreadableImages(len(indices), runtime.max_bad_fraction, run.unreadable_images)
    shuffled = shuffled_images(
        Images(source, indices, unreadable),
        (CenterCropResize(classifier.img_size),),
        _policy(t),
        batch_size=t.optimization.batch_size,
        epochs=t.optimization.epochs,
        seed=t.seed,
        runtime=runtime,
        fabric=fabric,
    )
    return FinetuneBatches(t, shuffled, classifier.num_classes, fabric.device)


def _policy(t: FinetuneRecipe) -> "Policy":
    from mapet.data.policy import Policy

    a = t.augmentation
    return Policy(t.seed, a.scale, a.ratio, a.hflip, a.auto_augment, a.color_jitter)


def evaluate(classifier: "Classifier", t: FinetuneRecipe, runtime: Runtime, fabric: "Fabric") -> "dict[str, Score]":
    """``top1`` and, with more than five classes, ``top5`` over all test images, which the processes share.

    Raises:
        MapetError: too many unreadable test images.
    """
    from mapet.data.dataset import train_and_test
    from mapet.evals.finetune import rank_histogram, ranks_from_histogram
    from mapet.evals.score import tops

    source = train_and_test(t.data, max_pixels=t.max_pixels)[1]
    counts = rank_histogram(classifier, _tests(source, classifier, t, runtime, fabric), fabric.device)
    return tops(ranks_from_histogram(fabric.all_reduce(counts, reduce_op="sum")), classifier.num_classes)


def _tests(
    source: "ImageDataset", classifier: "Classifier", t: FinetuneRecipe, runtime: Runtime, fabric: "Fabric"
) -> "Iterator[tuple[Tensor, Tensor]]":
    """This process's share of the test images: (B, 3, H, W) normalised, and labels (B,)."""
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
    """Add the scores to the run's ``scores.json``; those of the same protocol, step and data are replaced."""
    out, same = run.folder / "scores.json", ("protocol", "step", "data")
    try:
        earlier = entries(out)
    except MapetError:
        log.info(f"note      {out} was damaged and is begun anew")
        earlier = []
    kept = [entry for entry in earlier if any(entry.get(name) != about[name] for name in same)]
    write(out, [*kept, {**about, **{name: asdict(score) for name, score in scores.items()}}])
