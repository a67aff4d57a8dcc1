"""The one resolver of FROM: a run, an export folder or a checkpoint file; for a fine-tuning also random weights."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.config.finetune import RANDOM, Backbone, FinetuneRecipe
from mapet.config.flat import paths
from mapet.config.recipe import Model, Recipe
from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    from mapet.config.segmentation import SegmentRecipe
    from mapet.engine.run import Run
    from mapet.method.encoder import Classifier, Encoder

KINDS = "a run, an export folder, an official-format checkpoint or a timm model"
CHECKPOINTS = "checkpoints"  # of a run
ARCHITECTURE = ("model", "embed_dim", "depth", "patch_size", "init_values", "pos_embed")  # settings for FROM = random


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder, a ``Classifier`` if it has a head, and what is known of its training.

    ``origin`` describes the source in a few words. ``run``, ``recipe`` and ``step`` (completed steps) are None unless
    the source is a run; ``checkpoint`` is None unless it is one of a run's.
    """

    encoder: "Encoder"
    origin: str
    run: "Run | None" = None
    recipe: Recipe | FinetuneRecipe | None = None
    step: int | None = None
    checkpoint: Path | None = None

    @property
    def seed(self) -> int:
        """The run's seed; 0 if the source is not a run."""
        return self.recipe.seed if self.recipe else 0


def load_encoder(source: str | Path, *, num_heads: int | None = None) -> "Encoder":
    """The encoder of FROM in eval mode: images (B, 3, H, W), normalised → rows (B, 1 + L, D), CLS first.

    A classifier's head is left out. Arguments and errors as those of ``load_from``.
    """
    return headless(load_from(source, num_heads=num_heads)).encoder.eval()


def load_classifier(source: str | Path, *, num_heads: int | None = None) -> "Classifier":
    """The classifier of FROM in eval mode: images (B, 3, H, W), normalised → logits (B, classes).

    Its ``classes`` and ``crop_pct`` are those of the fine-tuning.

    Raises:
        MapetError: as ``load_from``, or FROM has no head.
    """
    from mapet.method.encoder import Classifier

    try:
        found = load_from(source, num_heads=num_heads)
    except MapetError as error:  # one word for what is given
        raise MapetError(re.sub(r"\bFROM\b", "CLASSIFIER", error.option_text)) from error
    if not isinstance(found.encoder, Classifier):
        raise MapetError(
            f"CLASSIFIER = {source}, {found.origin}, has no classifier's head: fine-tune it first (mapet finetune "
            f"{source} --data LABELLED --out RUN), or give a fine-tuning, or an export of one."
        )
    return found.encoder.eval()


def load_start(t: "FinetuneRecipe | SegmentRecipe") -> LoadedEncoder:
    """The encoder that a fine-tuning or a segmentation starts from.

    Raises:
        MapetError: as ``load_from``, or a setting of the architecture, which FROM decides.
    """
    if t.init == RANDOM:
        return _random(t)
    for name, field in paths(Backbone).items():
        if name in ARCHITECTURE and getattr(t.backbone, field) is not None:
            raise _fixed(name, t.init)
    return _load(t.init, t.backbone.num_heads, f"{KINDS}, or {RANDOM}")


def load_from(source: str | Path, *, num_heads: int | None = None) -> LoadedEncoder:
    """What FROM names, whichever kind it is.

    Args:
        source: a folder of a run (pre-training or fine-tuning), a folder that ``export`` wrote, or a checkpoint file
            of MaPeT, MAE, BEiT or CAE, or of plain timm names; a folder of transformers' ViT or ViT-MAE; or the name
            of a vision transformer that timm publishes.
        num_heads: attention heads of a checkpoint file, which does not store them; None assumes them, and
            ``origin`` says so.

    Raises:
        MapetError: none of these, not readable, or ``num_heads`` for a folder, which stores its own.
    """
    return _load(source, num_heads, KINDS)


def _load(source: str | Path, num_heads: int | None, kinds: str) -> LoadedEncoder:
    path = Path(source).expanduser()
    run = _run_of(path)
    if num_heads is not None and num_heads < 1:
        raise MapetError(f"--num-heads must be >= 1, got {num_heads}.")
    if num_heads is not None and (run or path.is_dir()):
        raise _fixed("num_heads", run or source)
    if run:
        return _from_run(run, None if run == path else path)
    if path.is_file():
        return _from_file(path, num_heads)
    return _from_elsewhere(source, path, kinds)


def _from_elsewhere(source: str | Path, path: Path, kinds: str) -> LoadedEncoder:
    """The encoder of a folder that is not a run, or of a model that timm publishes."""
    from mapet.interop.published import is_hugging_face, is_timm_name, load_hugging_face, load_published

    if not is_hugging_face(path) and (path / "config.json").is_file() and (path / "model.safetensors").is_file():
        from mapet.interop.timm import load_export

        return LoadedEncoder(load_export(path), f"the export {path}")
    if path.is_dir() and is_hugging_face(path):
        return LoadedEncoder(load_hugging_face(path), f"transformers' model in {path}")
    if not path.exists() and is_timm_name(str(source)):
        return LoadedEncoder(load_published(str(source)), f"timm's {source}")
    if (path / "compare.yaml").is_file():
        raise MapetError(f"FROM = {source} holds a comparison: give one of the folders in {path / 'runs'}.")
    reason = "holds neither a run nor an export" if path.is_dir() else "does not exist"
    raise MapetError(f"FROM = {source} {reason}: give {kinds}.")


def is_foreign_file(source: str | Path) -> bool:
    """Whether FROM is a file that does not say how many heads its model has."""
    path = Path(source).expanduser()
    return path.is_file() and _run_of(path) is None


def _run_of(path: Path) -> Path | None:
    """The folder of the run that the path names, or of which it is a checkpoint; None for anything else."""
    folder = path.parent.parent if path.exists() and path.parent.name == CHECKPOINTS else path
    return folder if (folder / "recipe.yaml").is_file() else None


def untrained(start: LoadedEncoder) -> LoadedEncoder:
    """The encoder of a pre-training run before its first step.

    Raises:
        MapetError: the source is not a pre-training run.
    """
    from mapet.build.pretrain import build_encoder

    if start.run is None or not isinstance(start.recipe, Recipe):
        raise MapetError(f"--random needs a pre-training run, and FROM is {start.origin}; remove it.")
    origin = f"the run {start.run.folder} before training"
    return replace(start, encoder=build_encoder(start.recipe), origin=origin, step=0)


def headless(start: LoadedEncoder) -> LoadedEncoder:
    """The same without a classifier's head: its forward pass returns rows instead of logits."""
    from mapet.interop.timm import arguments
    from mapet.method.encoder import Encoder

    if not start.encoder.num_classes:
        return start
    encoder = Encoder(**arguments(start.encoder))
    weights = start.encoder.state_dict().items()
    encoder.load_state_dict({name: tensor for name, tensor in weights if not name.startswith("head.")})
    return replace(start, encoder=encoder.eval())


def _fixed(name: str, source: str | Path) -> MapetError:
    return MapetError(f"--{name.replace('_', '-')} is fixed by {source}; remove it.")


def _random(t: "FinetuneRecipe | SegmentRecipe") -> LoadedEncoder:
    """The encoder that a pre-training with this seed starts from."""
    from mapet.build.pretrain import build_encoder

    b = t.backbone
    if b.name is None:
        raise MapetError("FROM = random needs --model, and for small images --image-size and --patch-size.")
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


def _from_run(path: Path, checkpoint: Path | None = None) -> LoadedEncoder:
    """The encoder of a run, of its last checkpoint unless another is given."""
    from mapet.api.resume import require_shape
    from mapet.build.finetune import load_run_classifier
    from mapet.build.pretrain import load_run_encoder
    from mapet.engine.checkpoint import Checkpoint
    from mapet.engine.run import Run

    run = Run(path)
    if run.segmenter.is_file():
        raise MapetError(
            f"FROM = {path} holds a segmentation model: give the run that it was trained from, or use mapet masks."
        )
    if checkpoint is not None:
        Checkpoint(checkpoint).verify()
    if run.classifier.is_file():
        classifier, t, step = load_run_classifier(path, checkpoint)
        return LoadedEncoder(classifier, f"the fine-tuning {path} after {step} steps", run, t, step, checkpoint)
    require_shape(run)
    encoder, recipe, step = load_run_encoder(path, checkpoint)
    return LoadedEncoder(
        encoder, f"the run {path}, {recipe.objective.name} after {step} steps", run, recipe, step, checkpoint
    )


def _from_file(path: Path, num_heads: int | None) -> LoadedEncoder:
    from mapet.interop.checkpoint import open_checkpoint

    encoder, assumed = open_checkpoint(path, heads=num_heads)
    return LoadedEncoder(encoder, f"the checkpoint {path}, {', '.join(assumed)}")
