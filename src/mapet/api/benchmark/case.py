"""What is measured: a recipe's training step, and other implementations of it with the same weights and images."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mapet.api.benchmark import baselines
from mapet.build.pretrain import build_objective
from mapet.config.benchmark import BASELINES
from mapet.config.recipe import Recipe
from mapet.method.order import STRATEGIES
from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

OURS = "ours"
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # of the loss, relative


@dataclass(frozen=True)
class Case:
    """One training step that is measured.

    Attributes:
        recipe: objective, model, batch size, precision and optimizer; with baselines, without stochastic depth.
        compiled: whether all implementations are compiled with ``torch.compile``.
        accumulate: micro-batches per step.
        baseline: names of ``BASELINES``.
        vocabulary: number of different tokens.
    """

    recipe: Recipe
    compiled: bool = False
    accumulate: int = 1
    baseline: tuple[str, ...] = ()
    vocabulary: int = 8192

    @property
    def batch(self) -> int:
        """Images per step."""
        return self.recipe.optimization.batch_size

    @property
    def baselines(self) -> tuple[str, ...]:
        """Those of ``baseline`` that implement the objective."""
        return tuple(name for name in self.baseline if self.recipe.objective.name in BASELINES[name])

    def __str__(self) -> str:
        made = f"{self.recipe.precision}{', compiled' if self.compiled else ''}"
        return f"{self.recipe.objective.name}, {self.recipe.model.name}, batch {self.batch}, {made}"


@dataclass(frozen=True)
class Implementation:
    """A module whose ``forward(**batch)`` returns a ``"loss"``, and its batch, both on the CPU."""

    name: str
    module: nn.Module
    batch: Mapping[str, Tensor]


def implementations(case: Case) -> list[Implementation]:
    """Ours, then its baselines, with equal weights and the same random images, tokens and orders.

    Raises:
        MapetError: a baseline is not installed, or cannot compute the recipe.
    """
    recipe = case.recipe
    if case.baselines:
        recipe = replace(recipe, model=replace(recipe.model, drop_path=0.0))
    objective, batch = build_objective(recipe, case.vocabulary), random_batch(case, recipe)
    return [
        Implementation(OURS, objective, batch),
        *(Implementation(name, *baselines.find().build(name, recipe, objective, batch)) for name in case.baselines),
    ]


def random_batch(case: Case, recipe: Recipe) -> dict[str, Tensor]:
    """A batch of random images as ``PretrainBatches`` would give it."""
    generator = torch.Generator().manual_seed(recipe.seed)
    length, index = recipe.grid[0] * recipe.grid[1], torch.arange(case.batch)
    side = recipe.model.image_size
    return {
        "images": torch.randn(case.batch, 3, side, side, generator=generator),
        "tokens": torch.randint(case.vocabulary, (case.batch, length), generator=generator),
        "order": STRATEGIES[recipe.objective.order](recipe.grid, recipe.num_masked, recipe.seed, 0, index),
        "seed": index,
    }


@torch.no_grad()
def require_equal(all_of_them: list[Implementation], case: Case, fabric: "Fabric") -> None:
    """Compare losses, because speeds are only comparable if these agree.

    Raises:
        MapetError: two implementations disagree.
    """
    losses = {one.name: _loss(one, fabric) for one in all_of_them}
    ours = losses[OURS]
    for name, loss in losses.items():
        if not abs(loss - ours) <= TOLERANCE[case.recipe.precision] * abs(ours):
            raise MapetError(f"{case}: the loss of {name} is {loss}, but ours is {ours}; not timed.")


def _loss(one: Implementation, fabric: "Fabric") -> float:
    """The loss of one implementation, uncompiled; it is on the device only during this call."""
    one.module.to(fabric.device)
    with fabric.autocast():
        loss = one.module(**{name: tensor.to(fabric.device) for name, tensor in one.batch.items()})["loss"].item()
    one.module.cpu()
    return float(loss)
