"""What k-NN and the probes share: a run's encoder, labelled pictures, and a printed result."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mapet.cli.options import say
from mapet.errors import MapetError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from mapet.data.bad import BadPictures
    from mapet.data.source import Source
    from mapet.evals.score import Score
    from mapet.method.encoder import Encoder
    from mapet.recipe import Recipe

    Labelled = tuple[Tensor, Tensor]

BATCH = 256  # pictures that the encoder sees at a time


@dataclass(frozen=True)
class Probe:
    """What an encoder is probed on."""

    run: str = ""
    """Folder of a pre-training run."""
    data: str | None = None
    """Labelled pictures: a folder with one sub-folder per class, or cifar10; None: those of the run."""
    limit: int | None = None
    """Use only so many training pictures, chosen at random; None: all."""
    random: bool = False
    """Probe the run's encoder as it was before training."""
    accelerator: str = "auto"
    """auto, cpu, cuda or mps."""
    workers: int | None = None
    """Processes that decode pictures; None: up to 8 beside an accelerator, none on a CPU."""
    max_bad: float = 0.01
    """Largest share of pictures that may be unreadable."""
    memory: float = 16.0
    """GiB that the features of all pictures may take."""


@dataclass(frozen=True)
class Pooled(Probe):
    """What an encoder is probed on, and which vector stands for a picture."""

    pool: str = "avg"
    """Features: avg (mean of patches), token (class token) or avg+token."""


def check_pool(pool: str) -> None:
    """Refuse what is no vector for a picture.

    Raises:
        MapetError: an unknown pool.
    """
    from mapet.evals.features import POOLS

    if pool not in POOLS:
        raise MapetError(f'There is no pool "{pool}".{nearest(pool, POOLS)}')


def probed(probe: Probe, verb: str, pool: str) -> "tuple[Labelled, Labelled, int]":
    """Training and test features with labels, and the number of classes.

    Raises:
        MapetError: no run, no labels, or what the loading of either raises.
    """
    from mapet.assemble import build_encoder, load_encoder
    from mapet.evals.features import effective_rank

    if not probe.run:
        raise MapetError(f"mapet {verb} needs --run, the folder of a pre-training run.")
    encoder, recipe, step = load_encoder(probe.run)
    if probe.random:
        encoder, step = build_encoder(recipe), 0
    data = probe.data or recipe.data
    train, test, classes = labelled_features(encoder, recipe, data, probe, pool)
    say(f"encoder   {probe.run} after {step} steps; {data}: {len(train[1]):,} training, {len(test[1]):,} test pictures")
    if train[0].ndim == 2:
        say(f"features  {train[0].shape[1]} wide, of effective rank {effective_rank(train[0]):.1f}")
    else:
        say(f"features  {train[0].shape[1]} {pool}, {train[0].shape[2]} wide")
    return train, test, classes


def labelled_features(
    encoder: "Encoder", recipe: "Recipe", data: str, probe: Probe, pool: str = "avg"
) -> "tuple[Labelled, Labelled, int]":
    """Features (N, …, F) and labels (N,) of both splits of ``data``, and the number of classes.

    Raises:
        MapetError: ``data`` has no labels, or features that take more than ``probe.memory``.
    """
    from mapet.data.bad import BadPictures
    from mapet.data.source import train_and_test
    from mapet.engine.world import pick_device
    from mapet.evals.features import features
    from mapet.feed import chosen

    splits = train_and_test(data)
    if not splits[0].classes:
        raise MapetError(f"{splits[0].name} has no labels: give --data, a folder with one sub-folder per class.")
    limits, found = (probe.limit, None), []
    wanted = [chosen(source, limit, recipe.seed) for source, limit in zip(splits, limits, strict=True)]
    _check_room(encoder, pool, sum(map(len, wanted)), probe.memory)
    for source, places in zip(splits, wanted, strict=True):
        bad = BadPictures(len(places), probe.max_bad)
        batches = _batches(source, places, encoder, probe, bad)
        found.append(features(encoder, batches, pool=pool, device=pick_device(probe.accelerator)))
    return found[0], found[1], len(splits[0].classes)


def _check_room(encoder: "Encoder", pool: str, pictures: int, memory: float) -> None:
    width = encoder.embed_dim
    unpooled = {"layers": 2 * 2 * width * len(encoder.blocks), "patches": 2 * width * encoder.length}
    needed = pictures * unpooled.get(pool, 4 * width * len(pool.split("+"))) / 2**30
    if needed > memory:
        raise MapetError(
            f"The features of {pictures:,} pictures take {needed:,.2f} GiB, more than --memory {memory:g}: "
            "lower --limit or raise --memory."
        )


def _batches(
    source: "Source", places: "Tensor", encoder: "Encoder", probe: Probe, bad: "BadPictures"
) -> "Iterator[tuple[Tensor, Tensor]]":
    import torch

    from mapet.data.augment import normalize, to_float
    from mapet.data.loader import in_order
    from mapet.engine.screen import Meter
    from mapet.engine.world import pick_device, pick_workers
    from mapet.view import View

    workers, done = pick_workers(probe.workers, pick_device(probe.accelerator)), 0
    with Meter("features", len(places)) as meter:
        for batch in in_order(source, View(encoder.img_size), BATCH, workers=workers, bad=bad, places=places.tolist()):
            yield normalize(to_float(batch.images)), torch.tensor([source.label(i) for i in batch.index.tolist()])
            done += len(batch.index)
            if meter.due(done):
                meter.update(done)


def report(scores: "Mapping[str, Score]", protocol: str, probe: Probe) -> None:
    """Print the scores under their protocol's name and add them to the run's ``scores.json``."""
    from mapet.disk import replace_file
    from mapet.engine.run import Run

    say(f"protocol  {protocol}")
    for name, score in scores.items():
        say(f"{name:<9} {score}" + (f"  {score.note}" if score.note else ""))
    run = Run(probe.run)
    out = run.folder / "scores.json"
    earlier = json.loads(out.read_text()) if out.is_file() else []
    step = 0 if probe.random else run.completed
    about = {"protocol": protocol, "step": step, "data": probe.data, "limit": probe.limit}
    entry = {**about, **{name: _plain(score) for name, score in scores.items()}}
    replace_file(out, json.dumps([*earlier, entry], indent=1) + "\n")


def _plain(score: "Score") -> dict[str, float | str]:
    return {name: value for name, value in vars(score).items() if value != ""}
