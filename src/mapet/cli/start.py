"""What a fine-tuning starts from: a run, an export folder, an official-format checkpoint, or random numbers."""

from pathlib import Path
from typing import TYPE_CHECKING

from mapet.errors import MapetError
from mapet.recipe import Model, Recipe
from mapet.tuning import RANDOM, Tuning

if TYPE_CHECKING:
    from mapet.method.encoder import Encoder

KINDS = "a pre-training run, an export folder, an official-format checkpoint, or random"
DRAWN = (
    "model",
    "embed_dim",
    "depth",
    "patch_size",
    "init_values",
    "pos_embed",
)  # settings of an encoder from random alone


def starting(t: Tuning) -> "tuple[Encoder, str]":
    """The encoder that FROM names, a ``Classifier`` where it has a head; and in a few words where it is from.

    Raises:
        MapetError: FROM is nothing of the kind, cannot be read, or has settings given beside it that are its own.
    """
    if t.start == RANDOM:
        return _drawn(t)
    path = Path(t.start).expanduser()
    own = [*DRAWN, *(["num_heads"] if path.is_dir() else [])]
    if given := [name for name in own if getattr(t.backbone, name) is not None]:
        raise MapetError(f"--{given[0].replace('_', '-')} is {t.start}'s own setting: leave it out.")
    if path.is_file():
        return _from_file(path, t.backbone.num_heads)
    if (path / "recipe.yaml").is_file():
        return _from_run(path)
    if (path / "config.json").is_file() and (path / "model.safetensors").is_file():
        from mapet.interop.timm import load_export

        return load_export(path), f"the export {path}"
    reason = "holds neither a run nor an export" if path.is_dir() else "does not exist"
    raise MapetError(f"FROM = {t.start} {reason}: give {KINDS}.")


def _drawn(t: Tuning) -> "tuple[Encoder, str]":
    """The very encoder that a pre-training with this seed would start from."""
    from mapet.assemble import build_encoder

    b = t.backbone
    if b.model is None:
        raise MapetError("mapet finetune random needs --model, and for small pictures --image-size and --patch-size.")
    model = Model(
        model=b.model,
        embed_dim=b.embed_dim,
        depth=b.depth,
        num_heads=b.num_heads,
        image_size=b.image_size or Model.image_size,
        patch_size=b.patch_size or Model.patch_size,
        init_values=Model.init_values if b.init_values is None else b.init_values or None,
        pos_embed=b.pos_embed or Model.pos_embed,
    )
    return build_encoder(Recipe(model=model, seed=t.seed)), f"random, {b.model}, seed {t.seed}"


def _from_run(path: Path) -> "tuple[Encoder, str]":
    from mapet.assemble import load_encoder
    from mapet.engine.run import Run
    from mapet.supervise import load_classifier

    if Run(path).classifier.is_file():
        classifier, _, step = load_classifier(path)
        return classifier, f"the fine-tuning {path} after {step} steps"
    encoder, recipe, step = load_encoder(path)
    return encoder, f"the run {path}, {recipe.objective.objective} after {step} steps"


def _from_file(path: Path, heads: int | None) -> "tuple[Encoder, str]":
    from mapet.interop.checkpoint import load_checkpoint_encoder

    return load_checkpoint_encoder(path, heads=heads), f"the checkpoint {path}"
