"""Checks of a comparison's labelled images and fine-tuning, made before anything is trained."""

from collections.abc import Iterable
from itertools import product
from typing import TYPE_CHECKING

from mapet.api.compare.evaluations import EVALUATIONS, tuning
from mapet.api.compare.plan import Plan, Trial, Variant, variants
from mapet.api.encoders import ARCHITECTURE
from mapet.api.features import features_gib
from mapet.config.compare import SEGMENTATION
from mapet.config.evaluate import FeatureSettings
from mapet.config.finetune import RANDOM
from mapet.config.flat import paths
from mapet.config.recipe import Runtime
from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    from mapet.data.dataset import ImageDataset


def validate(plan: Plan, runtime: Runtime) -> None:
    """Check that every evaluation of the plan can work.

    Raises:
        MapetError: images without labels, too few images of a class, or fine-tuning settings that do not fit.
    """
    from mapet.build.segmentation_set import both_splits
    from mapet.data.dataset import require_labels, train_and_test

    if set(plan.evaluate) & set(SEGMENTATION):
        both_splits(str(plan.segment_data), option="--segment-data")
    if set(plan.measures) <= set(SEGMENTATION):
        return
    train, test = train_and_test(plan.labelled)
    require_labels(train, test, "--eval-data")
    _labels(plan, train)
    _room(plan, min(len(train), plan.eval_limit or len(train)) + len(test))
    if "finetune" in plan.measures:
        _tuning(plan, runtime)


def _labels(plan: Plan, source: "ImageDataset") -> None:
    import torch

    from mapet.build.batches import choose_indices
    from mapet.evals.fewshot import SHOTS

    if len(source.classes) < 2:
        raise MapetError(f"{source.name} has only one class: give other --eval-data.")
    indices = choose_indices(source, plan.eval_limit, plan.recipe.seed)
    counts = torch.tensor([source.label(i) for i in indices.tolist()]).bincount(minlength=len(source.classes))
    least, number = source.classes[int(counts.argmin())], int(counts.min())
    needed = max(SHOTS) if "fewshot" in plan.evaluate else 1
    if number < needed and not set(plan.evaluate) <= {"finetune", *SEGMENTATION}:
        raise MapetError(
            f'Class "{least}" has {number} labelled training images, but --evaluate {",".join(plan.evaluate)} '
            f"needs {needed}: raise --eval-limit, or give other --eval-data."
        )


def _room(plan: Plan, images: int) -> None:
    """Check that the features fit into memory."""
    import torch

    from mapet.build.pretrain import build_encoder

    pools = {name: pool for name in plan.evaluate if (pool := EVALUATIONS[name].pool)}
    for variant, (name, pool) in product(_encoders(plan), pools.items()):
        with torch.device("meta"):
            needed = features_gib(build_encoder(variant.recipe), pool, images)
        if needed > FeatureSettings.cache_gib:
            raise MapetError(
                f"The features of {images:,} images take {needed:,.1f} GiB for --evaluate {name}, more than "
                f"{FeatureSettings.cache_gib:g}: lower --eval-limit, or remove {name}."
            )


def _encoders(plan: Plan) -> Iterable[Variant]:
    """One variant per architecture."""
    return {variant.recipe.model: variant for variant in variants(plan)}.values()


def _tuning(plan: Plan, runtime: Runtime) -> None:
    """Check the fine-tuning of each architecture, from random weights."""
    from mapet.api.finetune_inputs import validate

    backbone, fixed = plan.tuning.backbone, (*ARCHITECTURE, "num_heads")
    given = [name for name, field in paths(backbone).items() if name in fixed and getattr(backbone, field) is not None]
    if given:
        raise MapetError(f"--tuning sets {given[0]}, but the comparison sets the encoders: remove it.")
    for variant in _encoders(plan):
        try:
            validate(tuning(plan, Trial(variant, 0, variant.recipe.optimization.epochs), RANDOM), runtime)
        except MapetError as error:
            raise MapetError(
                f"--tuning does not fit: {error.option_text[:-1]}, in the FILE.yaml of --tuning."
            ) from error
