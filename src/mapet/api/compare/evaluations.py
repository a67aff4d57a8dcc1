"""The evaluations of a comparison: functions from a trained trial to its scores, each with its protocol."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.api.compare.plan import Plan, Trial
from mapet.api.evaluate import Probe, labelled_features
from mapet.config.recipe import Runtime

if TYPE_CHECKING:
    from mapet.cli.probe import Labelled
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
        self._features: dict[str, tuple[Labelled, Labelled, int]] = {}

    def features(self, pool: str) -> "tuple[Labelled, Labelled, int]":
        """Training and test features with labels, and the number of classes; the last pool's are kept."""
        if pool not in self._features:
            m, p = self.runtime, self.plan
            probe = Probe(
                max_images=p.eval_limit,
                accelerator=m.accelerator,
                workers=m.workers,
                max_bad_fraction=m.max_bad_fraction,
            )
            self._features = {
                pool: labelled_features(self.encoder, p.labelled, p.recipe.seed, probe, pool)
            }  # one at a time
        return self._features[pool]


@dataclass(frozen=True)
class Evaluation:
    """How an encoder is measured; ``pool`` names the features that it uses, if any."""

    measure: "Callable[[Subject], Mapping[str, Score]]"
    protocol: Callable[[Plan], str]
    pool: str | None = None


def _knn(subject: Subject) -> "Mapping[str, Score]":
    from mapet.evals.knn import knn

    train, test, classes = subject.features("avg")
    return knn(train, test, classes=classes)


def _knn_protocol(plan: Plan) -> str:
    from mapet.evals.knn import protocol

    return protocol()


def _linear(name: str, pool: str) -> Evaluation:
    def measure(subject: Subject) -> "Mapping[str, Score]":
        from mapet.engine.distributed import pick_device
        from mapet.evals.linear import linear

        train, test, classes = subject.features(pool)
        device = None if name == "quick" else pick_device(subject.runtime.accelerator)
        return linear(train, test, classes=classes, protocol=name, device=device)

    def protocol(plan: Plan) -> str:
        from mapet.evals.features import POOLS, UNPOOLED
        from mapet.evals.linear import PROTOCOLS

        return f"{PROTOCOLS[name]}, {(POOLS | UNPOOLED)[pool]}"

    return Evaluation(measure, protocol, pool)


def _attentive(subject: Subject) -> "Mapping[str, Score]":
    from mapet.engine.distributed import pick_device
    from mapet.evals.attentive import attentive

    train, test, classes = subject.features("patches")
    return attentive(train, test, classes=classes, device=pick_device(subject.runtime.accelerator))


def _attentive_protocol(plan: Plan) -> str:
    from mapet.evals.attentive import PROTOCOL

    return PROTOCOL


def _fewshot(subject: Subject) -> "Mapping[str, Score]":
    from mapet.evals.fewshot import fewshot

    train, test, classes = subject.features("avg")
    return fewshot(train, test, classes=classes)


def _fewshot_protocol(plan: Plan) -> str:
    from mapet.evals.features import POOLS
    from mapet.evals.fewshot import protocol

    return f"{protocol()}, {POOLS['avg']}"


def _finetune(subject: Subject) -> "Mapping[str, Score]":
    run = subject.run.with_name(f"{subject.run.name}-finetune")
    return tuned(tuning(subject.plan, subject.trial, str(subject.run.absolute())), run, subject.runtime)


def _finetune_protocol(plan: Plan) -> str:
    from mapet.config.finetune import protocol

    return protocol(plan.tuning)


EVALUATIONS = {
    "knn": Evaluation(_knn, _knn_protocol, "avg"),
    "linear": _linear("quick", "avg"),
    "linear-mae": _linear("mae", "avg"),
    "linear-beit": _linear("beit", "layers"),
    "attentive": Evaluation(_attentive, _attentive_protocol, "patches"),
    "fewshot": Evaluation(_fewshot, _fewshot_protocol, "avg"),
    "finetune": Evaluation(_finetune, _finetune_protocol),
}


def tuning(plan: Plan, trial: Trial, start: str) -> "FinetuneRecipe":
    """The plan's fine-tuning from ``start``; with --eval-limit each seed draws different labelled images."""
    from mapet.config.finetune import RANDOM

    t = replace(plan.tuning, start=start, data=plan.labelled, max_images=plan.eval_limit, seed=trial.recipe.seed)
    return replace(t, backbone=_backbone(trial, t.backbone.image_size)) if start == RANDOM else t


def _backbone(trial: Trial, image_size: int | None) -> "Backbone":
    """The shape of the trial's encoder, for fine-tuning from random weights."""
    from mapet.config.finetune import Backbone

    m = trial.recipe.model
    return Backbone(
        image_size=image_size or m.image_size,
        num_heads=m.num_heads,
        model=m.model,
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
    from mapet.api.finetune import finetune, resume
    from mapet.engine.run import Run
    from mapet.evals.score import Score
    from mapet.utils.log import silent

    if Run(folder).recipe.is_file():
        relink(t, Run(folder))
        run = resume(folder, runtime, say=silent)
    else:
        run = finetune(t, folder, runtime, say=silent)
    last: dict[str, Any] = json.loads((run.folder / "scores.json").read_text())[-1]
    return {name: Score(**score) for name, score in last.items() if isinstance(score, dict)}
