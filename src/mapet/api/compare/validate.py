"""What of a comparison's labelled images and fine-tuning cannot work, found before anything is trained."""

from collections.abc import Iterable
from itertools import product
from typing import TYPE_CHECKING

from mapet.api.compare.evaluations import EVALUATIONS, tuning
from mapet.api.compare.plan import Plan, Trial, Variant, arms
from mapet.api.encoders import ARCHITECTURE
from mapet.api.features import features_gib
from mapet.config.evaluate import FeatureSettings
from mapet.config.finetune import RANDOM
from mapet.config.recipe import Runtime
from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    from mapet.data.dataset import ImageDataset


def validate(plan: Plan, runtime: Runtime) -> None:
    """Find what no evaluation of the plan could do.

    Raises:
        MapetError: images without labels, too few of a class, or a fine-tuning that does not fit them.
    """
    from mapet.data.dataset import train_and_test

    train, test = train_and_test(plan.labelled)
    _labels(plan, train)
    _room(plan, min(len(train), plan.eval_limit or len(train)) + len(test))
    if "finetune" in plan.measures:
        _tuning(plan, runtime)


def _labels(plan: Plan, source: "ImageDataset") -> None:
    import torch

    from mapet.build.batches import chosen
    from mapet.evals.fewshot import SHOTS

    if not source.classes:
        raise MapetError(f"{source.name} has no labels: give --eval-data, a folder with sub-folders, one per class.")
    if len(source.classes) < 2:
        raise MapetError(f"{source.name} has one class, which leaves nothing to tell apart: give other --eval-data.")
    indices = chosen(source, plan.eval_limit, plan.recipe.seed)
    counts = torch.tensor([source.label(i) for i in indices.tolist()]).bincount(minlength=len(source.classes))
    least, number = source.classes[int(counts.argmin())], int(counts.min())
    needed = max(SHOTS) if "fewshot" in plan.evaluate else 1
    if number < needed and plan.evaluate != ("finetune",):
        raise MapetError(
            f'Of class "{least}" there are {number} labelled training images, and --evaluate '
            f"{','.join(plan.evaluate)} needs {needed}: raise --eval-limit, or give other --eval-data."
        )


def _room(plan: Plan, images: int) -> None:
    """Features are held in memory."""
    import torch

    from mapet.build.pretrain import build_encoder

    pools = {name: pool for name in plan.evaluate if (pool := EVALUATIONS[name].pool)}
    for arm, (name, pool) in product(_encoders(plan), pools.items()):
        with torch.device("meta"):
            needed = features_gib(build_encoder(arm.recipe), pool, images)
        if needed > FeatureSettings.cache_gib:
            raise MapetError(
                f"The features of {images:,} images take {needed:,.1f} GiB for --evaluate {name}, more than "
                f"{FeatureSettings.cache_gib:g}: lower --eval-limit, or leave that one out."
            )


def _encoders(plan: Plan) -> Iterable[Variant]:
    """One arm for each architecture."""
    return {arm.recipe.model: arm for arm in arms(plan)}.values()


def _tuning(plan: Plan, runtime: Runtime) -> None:
    """The fine-tuning of each encoder among the arms, as it would begin from random numbers."""
    from mapet.api.finetune_inputs import validate

    given = [name for name in (*ARCHITECTURE, "num_heads") if getattr(plan.tuning.backbone, name) is not None]
    if given:
        raise MapetError(f"--tuning has {given[0]}, but the encoders are those of the comparison: leave it out.")
    for arm in _encoders(plan):
        try:
            validate(tuning(plan, Trial(arm, 0, arm.recipe.optimization.epochs), RANDOM), runtime)
        except MapetError as error:
            raise MapetError(f"finetune does not fit: {str(error)[:-1]}, in the FILE.yaml of --tuning.") from error
