"""What is measured: one recipe's training step, and other formulations of it with the same weights and images."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mapet.api.benchmark.dense import Dense, dense_masks, predicted_positions
from mapet.build.pretrain import build_objective
from mapet.config.recipe import Recipe
from mapet.method.cae import CAE
from mapet.method.mae import MAE
from mapet.method.order import STRATEGIES
from mapet.method.predict import TokenPrediction
from mapet.utils.errors import MapetError, nearest

if TYPE_CHECKING:
    from lightning_fabric import Fabric

OURS = "ours"
AGAINST = {"dense": ("mapet",), "transformers": ("mim", "mae")}  # which objectives each can be compared with
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # of the loss, relative


@dataclass(frozen=True)
class Case:
    """One training step that is measured.

    Attributes:
        recipe: objective, model, batch size, precision and optimiser; what is compared has no stochastic depth.
        compiled: whether everything goes through ``torch.compile``.
        accumulate: parts into which a batch is cut.
        against: names of ``AGAINST``.
        vocabulary: number of different tokens.
    """

    recipe: Recipe
    compiled: bool = False
    accumulate: int = 1
    against: tuple[str, ...] = ()
    vocabulary: int = 8192

    def __post_init__(self) -> None:
        for name in self.against:
            if name not in AGAINST:
                raise MapetError(f'There is nothing called "{name}" to measure against.{nearest(name, AGAINST)}')

    @property
    def batch(self) -> int:
        """Images a step."""
        return self.recipe.optimization.batch_size

    @property
    def baselines(self) -> tuple[str, ...]:
        """Those of ``against`` that there are for the objective."""
        return tuple(name for name in self.against if self.recipe.objective.name in AGAINST[name])

    def __str__(self) -> str:
        made = f"{self.recipe.precision}{', compiled' if self.compiled else ''}"
        return f"{self.recipe.objective.name}, {self.recipe.model.name}, batch {self.batch}, {made}"


@dataclass(frozen=True)
class Implementation:
    """One formulation: a module whose ``forward(**batch)`` gives a ``"loss"``, and its batch, both on the CPU."""

    name: str
    module: nn.Module
    batch: Mapping[str, Tensor]


def implementations(case: Case) -> list[Implementation]:
    """Ours, then its rivals: equal weights, the same random images, tokens and orders.

    Raises:
        MapetError: what is measured against is not installed, or the recipe is not what it can compute.
    """
    recipe = case.recipe
    if case.baselines:
        recipe = replace(recipe, model=replace(recipe.model, drop_path=0.0))
    objective, batch = build_objective(recipe, case.vocabulary), drawn(case, recipe)
    return [
        Implementation(OURS, objective, batch),
        *(_rival(name, recipe, objective, batch) for name in case.baselines),
    ]


def drawn(case: Case, recipe: Recipe) -> dict[str, Tensor]:
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


def _rival(
    name: str, recipe: Recipe, objective: TokenPrediction | CAE | MAE, batch: Mapping[str, Tensor]
) -> Implementation:
    if name == "dense":
        assert isinstance(objective, TokenPrediction)
        if recipe.objective.groups is not None or recipe.objective.cls_layer is not None:
            raise MapetError("The dense reference knows mapet as published: leave --groups and --cls-layer out.")
        return Implementation(
            name, Dense(objective), dense_batch(batch, objective.pattern.context, objective.encoder.num_heads)
        )
    from mapet.api.benchmark import peers

    if isinstance(objective, MAE):
        return Implementation(name, peers.MaePeer(objective), peers.mae_batch(batch))
    assert isinstance(objective, TokenPrediction)
    return Implementation(name, peers.BeitPeer(objective), peers.beit_batch(batch, objective.pattern.context))


def dense_batch(batch: Mapping[str, Tensor], context: int, heads: int) -> dict[str, Tensor]:
    """A batch as the dense reference takes it: with masks for every image and head."""
    content, query = dense_masks(batch["order"], context, heads)
    return {
        "images": batch["images"],
        "tokens": batch["tokens"],
        "predicted": predicted_positions(batch["order"], context),
        "content_mask": content,
        "query_mask": query,
    }


@torch.no_grad()
def require_equal(all_of_them: list[Implementation], case: Case, fabric: "Fabric") -> None:
    """Compare losses: a comparison of speed is worth nothing where these differ.

    Raises:
        MapetError: two formulations disagree.
    """
    losses = {one.name: _loss(one, fabric) for one in all_of_them}
    ours = losses[OURS]
    for name, loss in losses.items():
        if not abs(loss - ours) <= TOLERANCE[case.recipe.precision] * abs(ours):
            raise MapetError(f"{case}: the loss of {name} is {loss}, and ours {ours}: nothing is timed.")


def _loss(one: Implementation, fabric: "Fabric") -> float:
    """Of one formulation, uncompiled; it is on the device for that long only."""
    one.module.to(fabric.device)
    with fabric.autocast():
        loss = one.module(**{name: tensor.to(fabric.device) for name, tensor in one.batch.items()})["loss"].item()
    one.module.cpu()
    return float(loss)
