"""From a recipe's settings to the objects that they describe, and from a run's folder back to its encoder."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mapet.engine.optim import Optim, adamw, cosine
from mapet.engine.run import Run, load_checkpoint, parts
from mapet.errors import MapetError
from mapet.method.encoder import SIZES, Encoder
from mapet.method.pattern import Pattern, mapet, mim, pet, reveal
from mapet.method.predict import TokenPrediction
from mapet.recipe import Objective, Recipe, load

if TYPE_CHECKING:
    from mapet.engine.fit import Batches


def build_encoder(recipe: Recipe) -> Encoder:
    """The recipe's encoder, freshly initialised from its seed: the same for every objective."""
    m = recipe.model
    custom = {"embed_dim": m.embed_dim, "depth": m.depth, "num_heads": m.num_heads}
    size: dict[str, Any] = SIZES.get(m.model) or {name: n for name, n in custom.items() if n is not None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return Encoder(
            m.image_size,
            m.patch_size,
            init_values=m.init_values,
            drop_path_rate=m.drop_path,
            pos_embed=m.pos_embed,
            **size,
        )


def build_pattern(recipe: Recipe) -> Pattern:
    """Who reads whom: the recipe's objective over its grid."""
    return objective_pattern(recipe.objective, recipe.grid[0] * recipe.grid[1], recipe.hidden)


def objective_pattern(objective: Objective, length: int, hidden: int) -> Pattern:
    """The objective's pattern over ``length`` patches, the last ``hidden`` of which are predicted."""
    if objective.groups is not None:
        sizes = [len(part) for part in torch.arange(hidden).tensor_split(min(hidden, objective.groups))]
        return reveal(length, sizes, fill=objective.objective == "mapet")
    return {"mapet": mapet, "pet": pet, "mim": mim}[objective.objective](length, hidden)


def build_objective(recipe: Recipe, vocabulary: int) -> TokenPrediction:
    """The recipe's objective, its head and mask token drawn from the seed after the encoder."""
    encoder = build_encoder(recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed + 1)
        return TokenPrediction(encoder, build_pattern(recipe), vocabulary)


def build_optim(recipe: Recipe, objective: torch.nn.Module, batches: "Batches") -> Optim:
    """AdamW under a warm-up cosine in steps; a warm-up longer than the run ends with it."""
    o = recipe.optimization
    optimizer = adamw(objective, weight_decay=o.weight_decay, betas=o.betas, no_decay=o.no_decay)
    warmup = min(batches.steps, round(o.warmup_epochs * batches.steps_per_epoch))
    lr = cosine(peak=recipe.lr, floor=o.min_lr, start=o.warmup_lr, warmup=warmup, total=batches.steps)
    return Optim(optimizer, lr, o.clip_grad, o.ema_decay)


def load_encoder(folder: str | Path) -> tuple[Encoder, Recipe, int]:
    """The encoder of a run's last checkpoint, its recipe, and the steps it was trained for.

    With a moving average in the checkpoint, that is what is loaded.

    Raises:
        MapetError: no run, no checkpoint yet, or one that does not fit its recipe.
    """
    run = Run.open(folder)
    if not run.last.is_file():
        raise MapetError(f"{run.folder} has no checkpoint yet: let it train until the first is written.")
    recipe = load(run.recipe)
    step, tensors = load_checkpoint(run.last)
    weights: dict[str, Tensor] = {**parts(tensors, "model"), **parts(tensors, "ema")}
    encoder = build_encoder(recipe)
    try:
        encoder.load_state_dict(
            {name.removeprefix("encoder."): t for name, t in weights.items() if name.startswith("encoder.")}
        )
    except RuntimeError as error:
        raise MapetError(f"{run.last} does not fit {run.recipe}: was the recipe changed by hand?") from error
    return encoder.eval(), recipe, step
