"""The memory of a recipe's training, before it begins."""

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mapet.build.pretrain import build_objective
from mapet.config.objectives import is_own
from mapet.config.recipe import Optimization, Recipe
from mapet.config.runtime import Runtime
from mapet.engine.footprint import Footprint, footprint

if TYPE_CHECKING:
    from mapet.data.loader import Shuffled

AHEAD = 2  # batches that each worker prefetches
WORKER = 80 << 20  # bytes of a worker that are its own
FLOATS = 4  # float images of a batch that its preparation holds at most
JITTERED = 7  # the same with colour jitter


def predict_footprint(
    recipe: Recipe, runtime: Runtime | None = None, *, vocabulary: int | None = None, device: str = "cpu"
) -> Footprint:
    """The peak memory of one of the processes that train a recipe, without what it holds before and its workers.

    Compiling, which saves memory, is left out.

    Args:
        recipe: its data and tokens are not read.
        runtime: micro-batches, processes, strategy, recomputation; None: the defaults.
        vocabulary: number of different tokens; None: the recipe's.
        device: ``"cpu"`` or ``"cuda"``.
    """
    runtime = runtime or Runtime()
    vocabulary = recipe.tokenizer.vocab_size if vocabulary is None else vocabulary
    if is_own(recipe.objective.name):
        return _predicted(recipe, runtime, vocabulary, device)
    return _kept(*_relevant(recipe, runtime), vocabulary, device)


def _relevant(recipe: Recipe, runtime: Runtime) -> tuple[Recipe, Runtime]:
    """The settings on which the memory of a built-in objective depends; the others, such as the seed, as by default."""
    sizes = {name: getattr(recipe, name) for name in ("model", "objective", "color_jitter", "precision")}
    steps, parts = (
        {name: getattr(given, name) for name in names}
        for given, names in (
            (recipe.optimization, ("batch_size", "ema_decay")),
            (runtime, ("devices", "num_nodes", "strategy", "micro_batch_size", "grad_checkpointing")),
        )
    )
    return Recipe(data="", **sizes, optimization=Optimization(**steps)), Runtime(**parts)


def _predicted(recipe: Recipe, runtime: Runtime, vocabulary: int, device: str) -> Footprint:
    size, processes = recipe.optimization.batch_size, runtime.processes
    share = max(1, size // processes)
    with torch.device("meta"):
        objective = build_objective(recipe, vocabulary)
    found = footprint(
        objective,
        lambda: _batch(recipe, share),
        accumulate=min(share, runtime.parts(size)),
        device=device,
        precision=recipe.precision,
        ema=recipe.optimization.ema_decay is not None,
        grad_checkpointing=runtime.grad_checkpointing,
        copies=int(processes > 1 and runtime.strategy == "ddp"),
    )
    if processes > 1 and runtime.strategy == "fsdp":
        found = replace(found, weights=found.weights // processes, optimizer=found.optimizer // processes)
    return found


_kept = lru_cache(maxsize=64)(_predicted)  # a comparison trains one recipe with many seeds


def _batch(recipe: Recipe, images: int) -> dict[str, Tensor]:
    """As ``PretrainBatches.prepared``, on the current device."""
    side, length = recipe.model.image_size, recipe.grid[0] * recipe.grid[1]
    floats = [torch.empty(images, 3, side, side) for _ in range(JITTERED if recipe.color_jitter else FLOATS)]
    return {
        "images": floats[-1],
        "tokens": torch.empty(images, length if recipe.reads_tokens else 0, dtype=torch.int64),
        "order": torch.empty(images, 1 + length, dtype=torch.int64),
        "seed": torch.empty(images, dtype=torch.int64),
    }


def loading_bytes(shuffled: "Shuffled") -> int:
    """Bytes of decoded images and workers of one process that are not there before the first step."""
    pixels = 3 * sum(height * width for height, width in (view.size for view in shuffled.views))
    if shuffled.held:
        return 0 if "_images" in vars(shuffled) else len(shuffled.indices) * pixels
    share = shuffled.batch_size // shuffled.world_size
    return share * pixels * (1 + AHEAD * shuffled.workers) + WORKER * shuffled.workers
