"""The encoder, objective and optimizer of a pre-training recipe, and the encoder of a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mapet.build.objectives import objective_type
from mapet.config.file import read_run
from mapet.config.recipe import Recipe
from mapet.engine.checkpoint import Checkpoint
from mapet.engine.generations import require_valid
from mapet.engine.optim import Optim, adamw, scheduled
from mapet.engine.run import Run
from mapet.method.encoder import SIZES, Encoder
from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    from mapet.engine.fit import Batches


def build_encoder(recipe: Recipe) -> Encoder:
    """The recipe's encoder, initialised from its seed: the same for every objective."""
    m = recipe.model
    custom = {"embed_dim": m.embed_dim, "depth": m.depth, "num_heads": m.num_heads}
    size: dict[str, Any] = SIZES.get(m.name) or {name: n for name, n in custom.items() if n is not None}
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


def build_objective(recipe: Recipe, vocabulary: int) -> Any:
    """The recipe's objective over a new encoder; its other weights are drawn from the seed after the encoder's."""
    encoder = build_encoder(recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed + 1)
        return objective_type(recipe.objective.name).build(recipe, encoder, vocabulary)


def build_optim(recipe: Recipe, objective: torch.nn.Module, batches: "Batches") -> Optim:
    """AdamW with warm-up and cosine decay."""
    o = recipe.optimization
    optimizer = adamw(objective, weight_decay=o.weight_decay, betas=o.betas, no_decay=o.no_decay)
    lr = scheduled(batches, peak=recipe.lr, floor=o.min_lr, start=o.warmup_lr, warmup_epochs=o.warmup_epochs)
    return Optim(optimizer, lr, o.clip_grad, o.ema_decay)


def load_run_encoder(folder: str | Path, checkpoint: Path | None = None) -> tuple[Encoder, Recipe, int]:
    """The encoder of a run's checkpoint, the last by default, its recipe, and the completed steps.

    The moving average of the weights is loaded if the checkpoint has one.

    Raises:
        MapetError: no run, no checkpoint yet, or one that does not fit its recipe.
    """
    run = Run.open(folder)
    if run.classifier.is_file():
        raise MapetError(f"{run.folder} holds a fine-tuning: give the folder of a pre-training run.")
    checkpoint = checkpoint or run.last
    if not checkpoint.exists():
        raise MapetError(f"{run.folder} has no checkpoint yet: let it train until the first is written.")
    recipe = read_run(run.recipe, Recipe)
    encoder, step = encoder_at(checkpoint, recipe)
    return encoder, recipe, step


def encoder_at(checkpoint: Path, recipe: Recipe) -> tuple[Encoder, int]:
    """The encoder in one checkpoint of a run, and the completed steps; raises as ``load_run_encoder``."""
    require_valid(checkpoint)
    found, encoder = Checkpoint(checkpoint), build_encoder(recipe)
    names = [name for kind in ("model", "ema") for name in found.shapes if name.startswith(f"{kind}/encoder.")]
    try:
        encoder.load_state_dict({name.split("/encoder.")[1]: found.read_finite(name) for name in names})
    except RuntimeError as error:
        raise MapetError(f"{checkpoint} does not fit its run's recipe.yaml: was that changed by hand?") from error
    return encoder.eval(), found.step
