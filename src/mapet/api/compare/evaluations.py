"""The evaluations of a comparison: functions from a trained trial to its scores, each with its protocol."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.api.compare.plan import Plan, Trial
from mapet.api.features import Features
from mapet.api.protocols import PROTOCOLS, Protocol
from mapet.api.segment_probe import SEGMENT_PROTOCOLS, measure
from mapet.config.evaluate import EvaluateSettings, FeatureSettings
from mapet.config.recipe import Runtime
from mapet.config.segmentation import SegmentProbeSettings

if TYPE_CHECKING:
    from mapet.config.finetune import Backbone, FinetuneRecipe
    from mapet.evals.score import Score
    from mapet.method.encoder import Encoder


class Subject:
    """A trial's encoder and the labelled images, which are the same for all trials and seeds.

    Args:
        encoder: trained, or as initialised.
        trial: the encoder's trial.
        run: folder of its run.
        plan: names the labelled images.
        runtime: how they are read.
    """

    def __init__(self, encoder: "Encoder", trial: Trial, run: Path, plan: Plan, runtime: Runtime) -> None:
        self.encoder, self.trial, self.run, self.plan, self.runtime = encoder, trial, run, plan, runtime
        self.settings = EvaluateSettings(
            features=FeatureSettings(
                max_images=plan.eval_limit,
                accelerator=runtime.accelerator,
                workers=runtime.workers,
                max_bad_fraction=runtime.max_bad_fraction,
            )
        )
        self.features = Features(encoder, plan.labelled, plan.recipe.seed, self.settings.features)


@dataclass(frozen=True)
class Evaluation:
    """How an encoder is measured; ``pool`` names the features that it uses, if any."""

    measure: "Callable[[Subject], Mapping[str, Score]]"
    protocol: Callable[[Plan], str]
    pool: str | None = None


def _frozen(protocol: Protocol) -> Evaluation:
    defaults = EvaluateSettings()
    return Evaluation(
        lambda subject: protocol.measure(subject.features, subject.settings),
        lambda plan: protocol.describe(defaults),
        protocol.pool_of(defaults),
    )


def _finetune(subject: Subject) -> "Mapping[str, Score]":
    run = subject.run.with_name(f"{subject.run.name}-finetune")
    return tuned(tuning(subject.plan, subject.trial, str(subject.run.absolute())), run, subject.runtime)


def _finetune_protocol(plan: Plan) -> str:
    from mapet.config.finetune import protocol

    return protocol(plan.tuning)


def _segmentation(name: str) -> Evaluation:
    """The probe ``name``; with --eval-limit, of so many images of its training split."""

    def settings(plan: Plan) -> SegmentProbeSettings:
        return SegmentProbeSettings(max_images=plan.eval_limit, seed=plan.recipe.seed)

    def run(subject: Subject) -> "Mapping[str, Score]":
        s = replace(settings(subject.plan), accelerator=subject.runtime.accelerator)
        return measure(subject.encoder, str(subject.plan.segment_data), [name], s)[name]

    return Evaluation(run, lambda plan: SEGMENT_PROTOCOLS[name].describe(settings(plan)))


EVALUATIONS = {
    **{name: _frozen(protocol) for name, protocol in PROTOCOLS.items()},
    "finetune": Evaluation(_finetune, _finetune_protocol),
    **{name: _segmentation(name) for name in SEGMENT_PROTOCOLS},
}


def tuning(plan: Plan, trial: Trial, start: str) -> "FinetuneRecipe":
    """The plan's fine-tuning from ``start``; with --eval-limit each seed draws different labelled images."""
    from mapet.config.finetune import RANDOM

    t = replace(plan.tuning, init=start, data=plan.labelled, max_images=plan.eval_limit, seed=trial.recipe.seed)
    return replace(t, backbone=_backbone(trial, t.backbone.image_size)) if start == RANDOM else t


def _backbone(trial: Trial, image_size: int | None) -> "Backbone":
    """The shape of the trial's encoder, for fine-tuning from random weights."""
    from mapet.config.finetune import Backbone

    m = trial.recipe.model
    return Backbone(
        image_size=image_size or m.image_size,
        num_heads=m.num_heads,
        name=m.name,
        embed_dim=m.embed_dim,
        depth=m.depth,
        patch_size=m.patch_size,
        init_values=m.init_values or 0.0,
        pos_embed=m.pos_embed,
    )


def tuned(t: "FinetuneRecipe", folder: Path, runtime: Runtime) -> "dict[str, Score]":
    """The test scores of the fine-tuning in ``folder``, which is started, resumed or already finished.

    Raises:
        MapetError, Stopped: as ``finetune``.
    """
    import json

    from mapet.api.compare.results_folder import relink
    from mapet.api.finetune import finetune
    from mapet.api.resume import resume
    from mapet.engine.run import Run
    from mapet.evals.score import Score
    from mapet.utils.log import quiet

    if Run(folder).recipe.is_file():
        relink(t, Run(folder))
        with quiet():
            run = resume(folder, runtime=runtime)
    else:
        with quiet():
            run = finetune(recipe=t, out=folder, runtime=runtime)
    last: dict[str, Any] = json.loads((run.folder / "scores.json").read_text())[-1]
    return {name: Score(**score) for name, score in last.items() if isinstance(score, dict)}
