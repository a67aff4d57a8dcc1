"""What FROM names: a run, an export folder or an official-format checkpoint; for a fine-tuning also random numbers."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.config.finetune import RANDOM, Backbone, FinetuneRecipe
from mapet.config.flat import paths
from mapet.config.recipe import Model, Recipe
from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    from mapet.engine.run import Run
    from mapet.method.encoder import Encoder

KINDS = "a run, an export folder or an official-format checkpoint"
DRAWN = ("model", "embed_dim", "depth", "patch_size", "init_values", "pos_embed")  # of an encoder from random alone


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder, a ``Classifier`` where it has a head, and what is known of its training.

    ``origin`` says in a few words where it is from. Only a run tells its settings and the steps it was trained for.
    """

    encoder: "Encoder"
    origin: str
    run: "Run | None" = None
    settings: Recipe | FinetuneRecipe | None = None
    step: int | None = None

    @property
    def seed(self) -> int:
        """That of the run, elsewhere 0."""
        return self.settings.seed if self.settings else 0


def load_start(t: FinetuneRecipe) -> LoadedEncoder:
    """What the FROM of a fine-tuning names.

    Raises:
        MapetError: as ``load_from``, or settings given beside FROM that are its own.
    """
    if t.init == RANDOM:
        return _drawn(t)
    for name, field in paths(Backbone).items():
        if name in DRAWN and getattr(t.backbone, field) is not None:
            raise _own(name, t.init)
    return load_from(t.init, t.backbone.num_heads, f", or {RANDOM}")


def load_from(name: str, heads: int | None, more: str = "") -> LoadedEncoder:
    """What the path ``name`` holds.

    Args:
        name: FROM.
        heads: attention heads where a checkpoint file does not tell them; None: width / 64.
        more: what else FROM might have been, for the error.

    Raises:
        MapetError: nothing of the kind, not to be read, or heads given beside a folder, which knows its own.
    """
    path = Path(name).expanduser()
    if path.is_dir() and heads is not None:
        raise _own("num_heads", name)
    if path.is_file():
        return _from_file(path, heads)
    if (path / "recipe.yaml").is_file():
        return _from_run(path)
    if (path / "config.json").is_file() and (path / "model.safetensors").is_file():
        from mapet.interop.timm import load_export

        return LoadedEncoder(load_export(path), f"the export {path}")
    reason = "holds neither a run nor an export" if path.is_dir() else "does not exist"
    raise MapetError(f"FROM = {name} {reason}: give {KINDS}{more}.")


def untrained(start: LoadedEncoder) -> LoadedEncoder:
    """The same run before its first step.

    Raises:
        MapetError: the first weights are not known.
    """
    from mapet.build.pretrain import build_encoder

    if start.run is None or not isinstance(start.settings, Recipe):
        raise MapetError(f"--random needs a pre-training run, and FROM is {start.origin}: leave it out.")
    origin = f"the run {start.run.folder} before training"
    return replace(start, encoder=build_encoder(start.settings), origin=origin, step=0)


def headless(start: LoadedEncoder) -> LoadedEncoder:
    """The same without a classifier's head, so that the encoder gives rows and no logits."""
    from mapet.interop.timm import arguments
    from mapet.method.encoder import Encoder

    if not start.encoder.num_classes:
        return start
    encoder = Encoder(**arguments(start.encoder))
    weights = start.encoder.state_dict().items()
    encoder.load_state_dict({name: tensor for name, tensor in weights if not name.startswith("head.")})
    return replace(start, encoder=encoder.eval())


def _own(name: str, start: str) -> MapetError:
    return MapetError(f"--{name.replace('_', '-')} is {start}'s own setting: leave it out.")


def _drawn(t: FinetuneRecipe) -> LoadedEncoder:
    """The very encoder that a pre-training with this seed would start from."""
    from mapet.build.pretrain import build_encoder

    b = t.backbone
    if b.name is None:
        raise MapetError("mapet finetune random needs --model, and for small images --image-size and --patch-size.")
    model = Model(
        name=b.name,
        embed_dim=b.embed_dim,
        depth=b.depth,
        num_heads=b.num_heads,
        image_size=b.image_size or Model.image_size,
        patch_size=b.patch_size or Model.patch_size,
        init_values=Model.init_values if b.init_values is None else b.init_values or None,
        pos_embed=b.pos_embed or Model.pos_embed,
    )
    return LoadedEncoder(build_encoder(Recipe(model=model, seed=t.seed)), f"random, {b.name}, seed {t.seed}")


def _from_run(path: Path) -> LoadedEncoder:
    from mapet.build.finetune import load_classifier
    from mapet.build.pretrain import load_encoder
    from mapet.engine.run import Run

    run = Run(path)
    if run.classifier.is_file():
        classifier, t, step = load_classifier(path)
        return LoadedEncoder(classifier, f"the fine-tuning {path} after {step} steps", run, t, step)
    encoder, recipe, step = load_encoder(path)
    return LoadedEncoder(encoder, f"the run {path}, {recipe.objective.name} after {step} steps", run, recipe, step)


def _from_file(path: Path, heads: int | None) -> LoadedEncoder:
    from mapet.interop.checkpoint import load_checkpoint_encoder

    return LoadedEncoder(load_checkpoint_encoder(path, heads=heads), f"the checkpoint {path}")
