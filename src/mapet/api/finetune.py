"""Train a classifier on labelled images, starting from a pre-trained encoder."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.api.finetune_inputs import evaluate, finetune_batches, validate
from mapet.api.settings import absolute, combined, is_file, named, require_given
from mapet.api.training import run_training
from mapet.api.tuned import Tuned
from mapet.config.finetune import RANDOM, FinetuneRecipe, protocol
from mapet.config.runtime import Runtime
from mapet.utils.owned import require_apart

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mapet.build.finetune import FinetuneBatches
    from mapet.engine.optim import Optim
    from mapet.engine.run import Run
    from mapet.evals.finetune import FineTuning
    from mapet.evals.score import Score


def finetune(
    source: str | Path | None = None,
    data: str | Path | None = None,
    out: str | Path | None = None,
    *,
    recipe: FinetuneRecipe | str | Path | None = None,
    runtime: Runtime | None = None,
    overwrite: bool = False,
    evaluate_every: int = 0,
    **settings: Any,
) -> "Run":
    """Train a classifier in the new folder ``out`` and test it.

    >>> mapet.finetune("runs/first", "labelled", "runs/classifier", epochs=50)

    Args:
        source: FROM, a run, an export folder, a checkpoint file, or "random"; None: that of the recipe.
        data: labelled images, a folder with one sub-folder per class, or cifar10; None: those of the recipe.
        out: folder for the run; must be empty or absent.
        recipe: settings, their name or a YAML file; None: the defaults.
        runtime: what must not change the result; None: the defaults.
        overwrite: whether to replace a run in ``out`` once this one trains.
        evaluate_every: test after every so many epochs, and at the end; 0: at the end only.
        settings: of recipe and runtime, by the names of the command line's options.

    Raises:
        MapetError: a folder in use; settings, images, labels or a FROM that do not fit; a loss that is not finite.
        Stopped: a signal to stop came (SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2); ``resume`` continues.
    """
    from mapet.engine.run import Run

    t, runtime = combined(named_tuning(recipe), runtime or Runtime(), settings)
    t = replace(t, init=str(source or t.init), data=str(data or t.data))
    require_given(
        FROM=(t.init, "a run, an export folder, a checkpoint, or random"),
        data=(t.data, "a folder with one sub-folder per class, or cifar10"),
        out=(out, "a folder for the run"),
    )
    assert out is not None
    require_apart(out, recipe=str(recipe) if is_file(recipe) else None, data=t.data, FROM=t.init)
    job = Finetuning(Run(out), anchored(t), runtime, evaluate_every)
    return run_training(job, new=True, overwrite=overwrite)


def named_tuning(name: FinetuneRecipe | str | Path | None) -> FinetuneRecipe:
    """A fine-tuning recipe by name or YAML file; the defaults for None."""
    from mapet.config.recipes.finetune import find

    return named(name, FinetuneRecipe, find)


def anchored(t: FinetuneRecipe) -> FinetuneRecipe:
    """The recipe with absolute paths, so that the run can be resumed from any folder."""
    return replace(t, init=absolute(t.init, RANDOM), data=absolute(t.data, "cifar10"))


class Finetuning(Tuned[FinetuneRecipe]):
    """A fine-tuning, with tests on the way and at the end."""

    label, inputs, with_labels = "finetune", "images or labels", True

    @property
    def protocol(self) -> str:
        """The settings in words."""
        return protocol(self.recipe)

    def validate(self, *, new: bool) -> None:
        """Load FROM and check it, images and labels on rank 0, unless a checkpoint has the weights already."""
        from mapet.utils.process_group import first_process

        begins = first_process() and (new or not self.run.last.exists())
        self.first = validate(self.recipe, self.runtime) if begins else None

    def prepare(self) -> None:
        """Write the classifier that the training starts from as checkpoint 0."""
        from mapet.build.finetune import begin

        if self.first is not None:
            begin(self.run, self.first[0], self.recipe, self.first[1])

    def batches(self, fabric: "Fabric") -> "FinetuneBatches":
        """Images with their labels."""
        return finetune_batches(self.run, self.recipe, self.runtime, fabric)

    def identity(self, batches: "FinetuneBatches") -> dict[str, Any]:
        """The classes."""
        return {"classes": list(batches.shuffled.source.classes)}

    def objective(self, batches: "FinetuneBatches", fabric: "Fabric") -> "FineTuning":
        """The classifier under its loss; ``fit`` loads the weights of checkpoint 0."""
        from mapet.build.finetune import shaped
        from mapet.evals.finetune import FineTuning

        classifier, self.about = shaped(self.run)
        return FineTuning(classifier)

    def plan(self, batches: "FinetuneBatches", objective: "FineTuning") -> Mapping[str, str]:
        """The classifier and its origin."""
        millions = sum(p.numel() for p in objective.parameters()) / 1e6
        model = f"{millions:.1f} M parameters, {objective.classifier.num_classes} classes; from {self.about['from']}"
        return {"model": model}

    def optim(self, objective: "FineTuning", batches: "FinetuneBatches") -> "Optim":
        """AdamW with layer decay."""
        from mapet.build.finetune import build_optim

        return build_optim(self.recipe, objective, len(objective.classifier.blocks), batches)

    def scores(self, objective: "FineTuning", fabric: "Fabric") -> "dict[str, Score]":
        """``top1`` and perhaps ``top5`` over the test images."""
        return evaluate(objective.classifier, self.recipe, self.runtime, fabric)
