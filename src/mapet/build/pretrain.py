"""From a recipe's settings to the objects that they describe, and from a run's folder back to its encoder."""

from math import lcm
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mapet.config.recipe import Objective, Recipe, load
from mapet.engine.checkpoint import Checkpoint
from mapet.engine.optim import Optim, adamw, scheduled
from mapet.engine.run import Run
from mapet.method.cae import CAE
from mapet.method.cls_aggregation import ClassAggregation
from mapet.method.encoder import SIZES, Encoder
from mapet.method.mae import DECODERS, MAE
from mapet.method.pattern import Pattern, mapet, mim, pet, reveal
from mapet.method.predict import TokenPrediction
from mapet.utils.errors import MapetError

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
    """Who reads whom in token prediction (mapet, pet, mim): the recipe's objective over its grid."""
    return objective_pattern(recipe.objective, recipe.grid[0] * recipe.grid[1], recipe.num_masked)


def objective_pattern(objective: Objective, length: int, hidden: int) -> Pattern:
    """The objective's pattern over ``length`` patches, the last ``hidden`` of which are predicted; on the CPU."""
    with torch.device("cpu"):
        if objective.groups is not None:
            sizes = [len(part) for part in torch.arange(hidden).tensor_split(min(hidden, objective.groups))]
            return reveal(length, sizes, fill=objective.objective == "mapet")
        return {"mapet": mapet, "pet": pet, "mim": mim}[objective.objective](length, hidden)


def build_objective(recipe: Recipe, vocabulary: int) -> TokenPrediction | CAE | MAE:
    """The recipe's objective; all that it has beside the encoder is drawn from the seed after the encoder."""
    o, encoder = recipe.objective, build_encoder(recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed + 1)
        if o.objective == "mae":
            return MAE(encoder, context=recipe.context, normalize_pixels=o.normalize_pixels, **mae_decoder(recipe))
        if o.objective == "cae":
            return CAE(
                encoder,
                context=recipe.context,
                vocabulary=vocabulary,
                regressor_depth=o.regressor_depth,
                decoder_depth=o.decoder_depth or 4,
                decoder_embed_dim=o.decoder_embed_dim,
                decoder_num_heads=o.decoder_num_heads,
                alignment_weight=o.alignment_weight,
            )
        if o.cls_layer is not None:
            return ClassAggregation(encoder, build_pattern(recipe), vocabulary, layer=o.cls_layer)
        return TokenPrediction(encoder, build_pattern(recipe), vocabulary)


def mae_decoder(recipe: Recipe) -> dict[str, int]:
    """Width, depth and heads of MAE's decoder: the recipe's, else those published for the encoder's size.

    A custom encoder has MAE-Lite's rule for small ones: one block, half the encoder's width and its heads; the width is
    rounded to a multiple of 4 and of the heads.
    """
    m, o = recipe.model, recipe.objective
    heads, width = m.num_heads or 1, m.embed_dim or 0
    unit = lcm(4, heads)
    half = {"decoder_embed_dim": max(1, round(width / 2 / unit)) * unit, "decoder_depth": 1, "decoder_num_heads": heads}
    asked = {name: getattr(o, name) for name in half}
    return {**DECODERS.get(m.model, half), **{name: n for name, n in asked.items() if n is not None}}


def build_optim(recipe: Recipe, objective: torch.nn.Module, batches: "Batches") -> Optim:
    """AdamW under a warm-up cosine in steps; a warm-up longer than the run ends with it."""
    o = recipe.optimization
    optimizer = adamw(objective, weight_decay=o.weight_decay, betas=o.betas, no_decay=o.no_decay)
    lr = scheduled(batches, peak=recipe.lr, floor=o.min_lr, start=o.warmup_lr, warmup_epochs=o.warmup_epochs)
    return Optim(optimizer, lr, o.clip_grad, o.ema_decay)


def load_run_encoder(folder: str | Path) -> tuple[Encoder, Recipe, int]:
    """The encoder of a run's last checkpoint, its recipe, and the steps it was trained for.

    With a moving average in the checkpoint, that is what is loaded.

    Raises:
        MapetError: no run, no checkpoint yet, or one that does not fit its recipe.
    """
    run = Run.open(folder)
    if run.classifier.is_file():
        raise MapetError(f"{run.folder} holds a fine-tuning: give the folder of a pre-training run.")
    if not run.last.exists():
        raise MapetError(f"{run.folder} has no checkpoint yet: let it train until the first is written.")
    recipe = load(run.recipe)
    encoder, step = encoder_at(run.last, recipe)
    return encoder, recipe, step


def encoder_at(checkpoint: Path, recipe: Recipe) -> tuple[Encoder, int]:
    """The encoder in one checkpoint of a run, and the steps it was trained for; raises as ``load_run_encoder``."""
    found, encoder = Checkpoint(checkpoint), build_encoder(recipe)
    names = [name for kind in ("model", "ema") for name in found.shapes if name.startswith(f"{kind}/encoder.")]
    try:
        encoder.load_state_dict({name.split("/encoder.")[1]: found.read(name) for name in names})
    except RuntimeError as error:
        raise MapetError(f"{checkpoint} does not fit its run's recipe.yaml: was that changed by hand?") from error
    return encoder.eval(), found.step
