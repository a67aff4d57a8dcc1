"""Training steps with loading from files."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mapet.api.benchmark import baselines
from mapet.api.benchmark.case import OURS, Case
from mapet.api.benchmark.step import Runner, over_stream
from mapet.build.batches import PretrainBatches, choose_indices, random_crops, student_view
from mapet.data.dataset import open_dataset
from mapet.data.decode import Batch
from mapet.data.loader import Shuffled
from mapet.data.unreadable import UnreadableImages
from mapet.engine.distributed import pick_workers
from mapet.utils.rng import randint

if TYPE_CHECKING:
    from lightning_fabric import Fabric

AHEAD = 2  # batches that each worker prefetches
TOKENS = 0x42  # salt


@dataclass(frozen=True)
class Loading:
    """How images are loaded.

    Attributes:
        data: folder of images, or cifar10.
        workers: processes that decode, as ``Runtime.workers``.
        cache_gib: decoded images are cached if they fit, as ``Runtime.cache_gib``.
    """

    data: str
    workers: int | None = None
    cache_gib: float = 2.0


class RandomTokens:
    """Random tokens in place of a store's: a lookup costs no more than drawing them."""

    tokenizer = "random"

    def __init__(self, vocabulary: int, length: int) -> None:
        self.vocabulary, self.length = vocabulary, length

    def __call__(self, batch: Batch) -> Tensor:
        """(B, L) int64, always the same for an image."""
        return randint(self.vocabulary, TOKENS, batch.index.cpu()[:, None], torch.arange(self.length))

    def some(self, shuffled: Shuffled) -> Tensor:
        """(1, L) of the first image."""
        return self(Batch(torch.empty(0), shuffled.indices[:1], 0))


def pretrain_batches(case: Case, loading: Loading, steps: int, device: torch.device) -> PretrainBatches:
    """At least ``steps`` steps of the recipe, loaded as ``mapet pretrain`` loads them.

    Raises:
        MapetError: no images, or fewer than one batch.
    """
    recipe, source = case.recipe, open_dataset(loading.data)
    indices = choose_indices(source, recipe.max_images, recipe.seed)
    shuffled = Shuffled(
        source,
        student_view(recipe),
        crops=random_crops(recipe),
        batch_size=case.batch,
        epochs=1 + steps / max(1, len(indices) // case.batch),
        seed=recipe.seed,
        bad=UnreadableImages(len(indices)),
        workers=pick_workers(loading.workers, device),
        memory=int(loading.cache_gib * 2**30),
        indices=indices,
        device=device,
    )
    return PretrainBatches(recipe, shuffled, RandomTokens(case.vocabulary, recipe.grid[0] * recipe.grid[1]), device)


def can_load(implementation: str) -> bool:
    """Whether an implementation can be measured with loading."""
    return implementation == OURS or implementation in baselines.find().LOADERS


def end_to_end(runner: Runner, case: Case, loading: Loading, steps: int, fabric: "Fabric") -> float:
    """Wall seconds per step with loading; prefetched batches do not count.

    Raises:
        MapetError: as ``pretrain_batches``.
    """
    workers = pick_workers(loading.workers, fabric.device)
    if runner.name != OURS:
        workers = baselines.find().WORKERS[runner.name](workers, case)
    skip = 1 + AHEAD * workers
    stream = pretrain_batches(case, replace(loading, workers=workers), skip + steps, fabric.device)
    batches = stream(0) if runner.name == OURS else baselines.find().LOADERS[runner.name](stream, case)
    return over_stream(runner, batches, skip, steps)
