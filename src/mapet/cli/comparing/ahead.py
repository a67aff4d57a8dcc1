"""What of a comparison's labelled pictures and fine-tuning cannot work, found before anything is trained."""

from mapet.cli.comparing.evaluations import tuning
from mapet.cli.start import DRAWN
from mapet.comparison.plan import Cell, Plan, arms
from mapet.errors import MapetError
from mapet.recipe import Machine
from mapet.tuning import RANDOM


def look_ahead(plan: Plan, machine: Machine) -> None:
    """Find what no evaluation of the plan could do.

    Raises:
        MapetError: pictures without labels, too few of a class, or a fine-tuning that does not fit them.
    """
    _labels(plan)
    if "finetune" in plan.measures:
        _tuning(plan, machine)


def _labels(plan: Plan) -> None:
    import torch

    from mapet.data.source import train_and_test
    from mapet.evals.fewshot import SHOTS
    from mapet.feed import chosen

    source, _ = train_and_test(plan.labelled)
    if not source.classes:
        raise MapetError(f"{source.name} has no labels: give --eval-data, a folder with one sub-folder per class.")
    if len(source.classes) < 2:
        raise MapetError(f"{source.name} has one class, which leaves nothing to tell apart: give other --eval-data.")
    places = chosen(source, plan.eval_limit, plan.recipe.seed)
    counts = torch.tensor([source.label(i) for i in places.tolist()]).bincount(minlength=len(source.classes))
    least, number = source.classes[int(counts.argmin())], int(counts.min())
    needed = max(SHOTS) if "fewshot" in plan.evaluate else 1
    if number < needed and plan.evaluate != ("finetune",):
        raise MapetError(
            f'Of class "{least}" there are {number} labelled training pictures, and --evaluate '
            f"{','.join(plan.evaluate)} needs {needed}: raise --eval-limit, or give other --eval-data."
        )


def _tuning(plan: Plan, machine: Machine) -> None:
    """The fine-tuning of each encoder among the arms, as it would begin from random numbers."""
    from mapet.cli.lessons import look_ahead

    given = [name for name in (*DRAWN, "num_heads") if getattr(plan.tuning.backbone, name) is not None]
    if given:
        raise MapetError(f"--tuning has {given[0]}, but the encoders are those of the comparison: leave it out.")
    for arm in {arm.recipe.model: arm for arm in arms(plan)}.values():
        try:
            look_ahead(tuning(plan, Cell(arm, 0, arm.recipe.optimization.epochs), RANDOM), machine)
        except MapetError as error:
            raise MapetError(f"--tuning does not fit: {error}") from error
