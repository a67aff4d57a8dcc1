"""Train a VQ-KD tokenizer (BEiT v2), whose codes describe what a teacher sees."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.api.settings import absolute, combined, is_file, named, require_given
from mapet.api.training import Job, run_training
from mapet.api.vqkd_inputs import build_distill_batches, validate
from mapet.config.runtime import Runtime
from mapet.config.vqkd import VQKDRecipe
from mapet.utils.errors import MapetError
from mapet.utils.owned import require_apart
from mapet.utils.versions import versions

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mapet.build.vqkd import DistillBatches
    from mapet.engine.optim import Optim
    from mapet.engine.run import Run
    from mapet.tokenizers.teacher import Features
    from mapet.tokenizers.vqkd_train import VQKDTraining

MEASURED = 10_000  # images on which the trained tokenizer is measured


def train_vqkd(
    data: str | Path | None = None,
    out: str | Path | None = None,
    *,
    recipe: VQKDRecipe | str | Path | None = None,
    runtime: Runtime | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> "Run":
    """Train a tokenizer in the new folder ``out``, which ``load_tokenizer`` reads once the training has ended.

    Args:
        data: a folder of images, or cifar10; None: those of the recipe.
        out: folder for the run and the tokenizer; must be empty or absent.
        recipe: settings, or a YAML file; None: the defaults.
        runtime: what must not change the result; None: the defaults.
        overwrite: whether to replace a run in ``out`` once this one trains.
        settings: of recipe and runtime, by the names of the command line's options.

    Raises:
        MapetError: a folder in use, settings, images or a teacher that do not fit, or a loss that is not finite.
        Stopped: a signal to stop came (SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2); ``resume`` continues.
    """
    from mapet.engine.run import Run

    t, runtime = combined(named(recipe, VQKDRecipe, _no_name), runtime or Runtime(), settings)
    t = replace(t, data=str(data or t.data))
    require_given(data=(t.data, "a folder of images, or cifar10"), out=(out, "a folder for run and tokenizer"))
    assert out is not None
    require_apart(out, recipe=str(recipe) if is_file(recipe) else None, data=t.data, teacher=t.teacher)
    require_apart(out, teacher_weights=t.teacher_weights)
    return run_training(VQKDTrainingJob(Run(out), anchored(t), runtime), new=True, overwrite=overwrite)


def _no_name(name: str) -> VQKDRecipe:
    raise MapetError(f'There is no recipe "{name}" of this kind: give a file that ends in .yaml.')


def anchored(t: VQKDRecipe) -> VQKDRecipe:
    """The recipe with absolute paths, so that the run can be resumed from any folder."""
    return replace(t, data=absolute(t.data, "cifar10"), teacher_weights=absolute(t.teacher_weights))


class VQKDTrainingJob(Job[VQKDRecipe]):
    """The training of a VQ-KD tokenizer."""

    label, inputs = "vq-kd", "images or another teacher"
    teacher: "Features"

    @property
    def size(self) -> tuple[float, int, float]:
        """Epochs, images of a step, and the largest learning rate."""
        return self.recipe.epochs, self.recipe.batch_size, self.recipe.peak

    def validate(self, *, new: bool) -> None:
        """Check images and device and load the teacher, on every rank; its folder becomes an absolute path."""
        self.teacher = validate(self.recipe, self.runtime)
        self.recipe = replace(self.recipe, teacher=self.teacher.source)

    def batches(self, fabric: "Fabric") -> "DistillBatches":
        """Images for the tokenizer with what the teacher sees in them."""
        return build_distill_batches(self.run, self.recipe, self.runtime, self.teacher, fabric)

    def identity(self, batches: "DistillBatches") -> dict[str, Any]:
        """The teacher."""
        return {"teacher": self.teacher.describe()}

    def objective(self, batches: "DistillBatches", fabric: "Fabric") -> "VQKDTraining":
        """Tokenizer and decoder."""
        from mapet.build.vqkd import build_objective

        return build_objective(self.recipe, self.teacher.width, fabric)

    def plan(self, batches: "DistillBatches", objective: "VQKDTraining") -> Mapping[str, str]:
        """The teacher and the model."""
        t, teacher, millions = self.recipe, self.teacher, sum(p.numel() for p in objective.parameters()) / 1e6
        (rows, columns), (height, width) = t.grid, teacher.view.size
        patches = f"{rows} × {columns} patches of images of {height} × {width} pixels"
        return {
            "teacher": f"{teacher.name}, {teacher.width} channels for {patches}",
            "model": f"vqkd, {millions:.1f} M parameters; {t.vocab_size:,} codes of {t.code_dim}",
        }

    def initialize(self, objective: "VQKDTraining", batches: "DistillBatches") -> None:
        """Set the first codes by k-means."""
        from mapet.build.vqkd import initialize_codes

        initialize_codes(objective, batches)

    def optim(self, objective: "VQKDTraining", batches: "DistillBatches") -> "Optim":
        """AdamW, with an update of the codes after each step."""
        from mapet.build.vqkd import build_optim

        return build_optim(self.recipe, objective, batches)

    def progress(self, recent: Mapping[str, float]) -> str:
        """Loss, cosine to the teacher, and the use of the codes."""
        used = f"codes {recent['used']:.0f}  perplexity {recent['perplexity']:.0f}"
        return f"loss {recent['loss']:.3f}  cosine {recent['cosine']:.3f}  {used}"

    def measure(self, objective: "VQKDTraining", batches: "DistillBatches", step: int, fabric: "Fabric") -> None:
        """Measure the tokenizer on some images and write it into the run's folder, on rank 0."""
        from mapet.build.vqkd import measure

        if not fabric.is_global_zero:
            return
        self.found, tokenizer = measure(objective, batches, MEASURED), objective.tokenizer()
        tokenizer.provenance = {
            "data": batches.shuffled.source.name,
            "teacher": self.teacher.describe(),
            "origin": self.teacher.origin,
            "steps": step,
            **self.found,
            "versions": versions(("mapet", "torch", "timm")),
        }
        tokenizer.save(self.run.folder)

    def summary(self, objective: "VQKDTraining", batches: "DistillBatches") -> str:
        """Use of the codes and cosine to the teacher."""
        used = f"{self.found['used']:,} of {objective.network.vocabulary:,} codes used"
        reached = f"perplexity {self.found['perplexity']:.0f}, cosine {self.found['cosine']:.3f}"
        return f"step {batches.steps}: {used}, {reached} on {self.found['images']:,} images"
