"""What k-NN and the probes share: an encoder, labelled images, and a printed result."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mapet.api.encoders import KINDS, LoadedEncoder, headless, load_from, untrained
from mapet.api.scores import entries
from mapet.utils.errors import MapetError, nearest
from mapet.utils.log import say, silent

if TYPE_CHECKING:
    from torch import Tensor

    from mapet.data.dataset import ImageDataset
    from mapet.data.unreadable import UnreadableImages
    from mapet.evals.score import Score
    from mapet.method.encoder import Encoder

    Labelled = tuple[Tensor, Tensor]


T = TypeVar("T")


BATCH = 256  # images that the encoder sees at a time


@dataclass(frozen=True)
class Probe:
    """What an encoder is probed on."""

    run: str = ""
    """FROM: a run or export folder, or an official-format checkpoint; may come first, without --run."""
    data: str | None = None
    """Labelled images: a folder with one sub-folder per class, or cifar10; None: those that a run was trained on."""
    max_images: int | None = None
    """Use only so many training images, drawn by a run's seed, elsewhere by seed 0; None: all."""
    random: bool = False
    """Probe the encoder of a pre-training run as it was before training."""
    num_heads: int | None = None
    """Attention heads where an official-format FROM does not tell them; None: width / 64."""
    out: str | None = None
    """JSON file that the scores are added to; None: a run's scores.json, elsewhere none."""
    accelerator: str = "auto"
    """auto, cpu, cuda or mps."""
    workers: int | None = None
    """Processes that decode images; None: up to 8 beside an accelerator, none on a CPU."""
    max_bad_fraction: float = 0.01
    """Largest share of images that may be unreadable."""
    cache_gib: float = 16.0
    """GiB that the features of all images may take."""


@dataclass(frozen=True)
class Pooled(Probe):
    """What an encoder is probed on, and which vector stands for an image."""

    pool: str = "avg"
    """Features: avg (mean of patches), token (class token) or avg+token."""


def check_pool(pool: str) -> None:
    """Refuse what is no vector for an image.

    Raises:
        MapetError: an unknown pool.
    """
    from mapet.evals.features import POOLS

    if pool not in POOLS:
        raise MapetError(f'There is no pool "{pool}".{nearest(pool, POOLS)}')


@dataclass(frozen=True)
class Probed:
    """Features with labels of both splits, the number of classes, and whose they are."""

    train: "Labelled"
    test: "Labelled"
    classes: int
    start: LoadedEncoder


def probed(probe: Probe, verb: str, pool: str) -> Probed:
    """The features that a probe reads.

    Raises:
        MapetError: no FROM, no labels, options that do not fit, or what the loading of either raises.
    """
    from mapet.evals.features import effective_rank

    start, data = _subject(probe, verb)
    if out := _scores(probe, start):
        entries(out)  # so that what is no list of scores is told before the work
    train, test, classes = labelled_features(start.encoder, data, start.seed, probe, pool, say)
    say(f"encoder   {start.origin}; {data}: {len(train[1]):,} training, {len(test[1]):,} test images")
    if train[0].ndim == 2:
        say(f"features  {train[0].shape[1]} wide, of effective rank {effective_rank(train[0]):.1f}")
    else:
        say(f"features  {train[0].shape[1]} {pool}, {train[0].shape[2]} wide")
    return Probed(train, test, classes, start)


def _subject(probe: Probe, verb: str) -> tuple[LoadedEncoder, str]:
    """Whose features, and of which images."""
    if not probe.run:
        raise MapetError(f"mapet {verb} needs FROM: {KINDS}.")
    if probe.num_heads is not None and probe.num_heads < 1:
        raise MapetError("--num-heads does not fit: it must be at least 1.")
    start = load_from(probe.run, probe.num_heads)
    start = untrained(start) if probe.random else headless(start)
    data = probe.data or (start.settings.data if start.settings else "")
    if not data:
        raise MapetError(f"mapet {verb} needs --data, labelled images: {start.origin} names none.")
    if (channels := start.encoder.in_chans) != 3:
        raise MapetError(f"FROM takes images of {channels} channels, and --data has RGB ones: give another FROM.")
    return start, data


def labelled_features(
    encoder: "Encoder",
    data: str,
    seed: int,
    probe: Probe,
    pool: str = "avg",
    tell: Callable[[str], None] = silent,
) -> "tuple[Labelled, Labelled, int]":
    """Features (N, …, F) and labels (N,) of both splits of ``data``, and the number of classes.

    ``seed`` draws the training images where ``probe`` limits them; ``tell`` is told of unreadable ones.

    Raises:
        MapetError: ``data`` has no labels, or features that take more than ``probe.cache_gib``.
    """
    from mapet.build.batches import chosen
    from mapet.data.dataset import train_and_test
    from mapet.data.unreadable import UnreadableImages
    from mapet.engine.distributed import pick_device
    from mapet.evals.features import features

    splits = train_and_test(data)
    if not splits[0].classes:
        raise MapetError(f"{splits[0].name} has no labels: give --data, a folder with sub-folders, one per class.")
    limits, found = (probe.max_images, None), []
    wanted = [chosen(source, limit, seed) for source, limit in zip(splits, limits, strict=True)]
    if (needed := room(encoder, pool, count := sum(map(len, wanted)))) > probe.cache_gib:
        raise MapetError(
            f"The features of {count:,} images take {needed:,.2f} GiB, more than --cache-gib {probe.cache_gib:g}: "
            "lower --max-images or raise --cache-gib."
        )
    for source, indices in zip(splits, wanted, strict=True):
        bad = UnreadableImages(len(indices), probe.max_bad_fraction)
        batches = _batches(source, indices, encoder, probe, bad)
        found.append(features(encoder, batches, pool=pool, device=pick_device(probe.accelerator)))
        if note := bad.note():
            tell(f"note      {note}")
    return found[0], found[1], len(splits[0].classes)


def room(encoder: "Encoder", pool: str, images: int) -> float:
    """GiB that the features of so many images take."""
    width = encoder.embed_dim
    unpooled = {"layers": 2 * 2 * width * len(encoder.blocks), "patches": 2 * width * encoder.length}
    return images * unpooled.get(pool, 4 * width * len(pool.split("+"))) / 2**30


def _batches(
    source: "ImageDataset", indices: "Tensor", encoder: "Encoder", probe: Probe, bad: "UnreadableImages"
) -> "Iterator[tuple[Tensor, Tensor]]":
    import torch

    from mapet.data.augment import normalize, to_float
    from mapet.data.loader import in_order
    from mapet.engine.distributed import pick_device, pick_workers
    from mapet.engine.progress import Meter
    from mapet.utils.view import CenterCropResize

    workers, done = pick_workers(probe.workers, pick_device(probe.accelerator)), 0
    with Meter("features", len(indices)) as meter:
        for batch in in_order(
            source, CenterCropResize(encoder.img_size), BATCH, workers=workers, bad=bad, indices=indices.tolist()
        ):
            yield normalize(to_float(batch.images)), torch.tensor([source.label(i) for i in batch.index.tolist()])
            done += len(batch.index)
            if meter.due(done):
                meter.update(done)


def _scores(probe: Probe, start: LoadedEncoder) -> Path | None:
    """The file of the scores: an export folder or a checkpoint's is not ours to write into."""
    if probe.out:
        return Path(probe.out).expanduser()
    return start.run.folder / "scores.json" if start.run else None


def _plain(score: "Score") -> dict[str, float | str]:
    return {name: value for name, value in vars(score).items() if value != ""}
