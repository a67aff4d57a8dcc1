"""Other implementations of our training step, with our weights: ``mapet bench --baseline NAME`` compares with them.

They belong to the repository, not to the package.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from baselines.dense import Dense, dense_batch
from baselines.masked_loader import limited_workers, with_masks
from mapet.config.recipe import Recipe
from mapet.method.cae import CAE
from mapet.method.mae import MAE
from mapet.method.predict import TokenPrediction
from mapet.utils.errors import MapetError

LOADERS = {"dense": with_masks}  # baselines that can be measured with loading
WORKERS = {"dense": limited_workers}

__all__ = ["LOADERS", "WORKERS", "build", "require_installed"]


def require_installed(name: str) -> None:
    """Refuse a baseline whose package is missing.

    Raises:
        MapetError: with the package.
    """
    if name == "transformers":
        from baselines.transformers_models import installed

        installed()


def build(
    name: str, recipe: Recipe, objective: TokenPrediction | CAE | MAE, batch: Mapping[str, Tensor]
) -> tuple[nn.Module, dict[str, Tensor]]:
    """The baseline with the weights of ``objective``, and its form of our ``batch``.

    Raises:
        MapetError: the baseline cannot compute the recipe, or is not installed.
    """
    if name == "dense":
        assert isinstance(objective, TokenPrediction)
        if recipe.objective.groups is not None or recipe.objective.cls_layer is not None:
            raise MapetError("--baseline dense computes mapet as published; remove --groups and --cls-layer.")
        return Dense(objective), dense_batch(batch, objective.pattern.context, objective.encoder.num_heads)
    from baselines import transformers_models

    if isinstance(objective, MAE):
        return transformers_models.TransformersMAE(objective), transformers_models.mae_batch(batch)
    assert isinstance(objective, TokenPrediction)
    context = objective.pattern.context
    return transformers_models.TransformersBEiT(objective), transformers_models.beit_batch(batch, context)
