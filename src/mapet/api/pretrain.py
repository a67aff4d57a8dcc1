"""Pre-train an encoder on unlabelled images."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.api.encoders import LoadedEncoder
from mapet.api.initial import begin_from, load_init
from mapet.api.panels import Panels, require_drawn
from mapet.api.pretrain_inputs import prepare_tokens, pretrain_batches, stored_tokens, validate
from mapet.api.probes import keep_best, labelled_data, probe, record
from mapet.api.settings import absolute, combined, named_recipe, require_given
from mapet.api.tokenize import require_one_way
from mapet.api.training import Job, run_training
from mapet.config.flat import updated
from mapet.config.objectives import absolute_name, file_hash, is_own, short_name
from mapet.config.recipe import Recipe
from mapet.config.runtime import PretrainRuntime, Runtime
from mapet.utils.owned import require_apart

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import nn

    from mapet.build.batches import PretrainBatches
    from mapet.engine.optim import Optim
    from mapet.engine.run import Run


def pretrain(
    recipe: Recipe | str | Path | None = None,
    out: str | Path | None = None,
    *,
    runtime: Runtime | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> "Run":
    """Pre-train an encoder in the new folder ``out``.

    >>> mapet.pretrain(data="images", out="runs/first", model="vit_small", epochs=100)

    Tokens that the recipe does not name are made in ``out`` first; with random crops and flips a tokenizer is.

    Args:
        recipe: a recipe, its name or a YAML file; None: the defaults.
        out: folder for the run; must be empty or absent.
        runtime: what must not change the result; None: the defaults.
        overwrite: whether to replace a run in ``out`` once this one trains.
        settings: of recipe and runtime, by the names of the command line's options.

    Raises:
        MapetError: a folder in use, settings, images or tokens that do not fit, or a loss that is not finite.
        Stopped: a signal to stop came (SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2); ``resume`` continues.
    """
    from mapet.engine.run import Run

    given = named_recipe(recipe)
    wanted, runtime = combined(given, PretrainRuntime.of(runtime), settings)
    t = wanted.tokenizer
    require_given(data=(wanted.data, "a folder of images, or cifar10"), out=(out, "a folder for the run"))
    assert out is not None
    require_apart(out, recipe=recipe if isinstance(recipe, str | Path) and Path(recipe).is_file() else None)
    require_apart(out, data=wanted.data, tokens=wanted.tokens, tokenizer=t.path)
    require_apart(out, init=wanted.init, probe_data=runtime.probe_data)
    require_apart(out, teacher=t.teacher, teacher_weights=t.teacher_weights)
    require_one_way(t, given.tokenizer, tokens=wanted.tokens, tokenizer=t.path)
    return run_training(Pretraining(Run(out), anchored(wanted), runtime), new=True, overwrite=overwrite)


def anchored(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths, so that the run can be resumed from any folder."""
    t = recipe.tokenizer
    return updated(
        recipe,
        data=absolute(recipe.data, "cifar10"),
        tokens=absolute(recipe.tokens),
        init=absolute(recipe.init) if recipe.init and os.path.lexists(Path(recipe.init).expanduser()) else recipe.init,
        tokenizer=absolute(t.path),
        teacher_weights=absolute(t.teacher_weights),
        objective=absolute_name(recipe.objective.name),
    )


class Pretraining(Job[Recipe]):
    """A pre-training, probed on the way if wanted."""

    runtime: PretrainRuntime
    labelled = ""

    label = "pretrain"

    def __init__(self, run: "Run", recipe: Recipe, runtime: Runtime) -> None:
        super().__init__(run, recipe, PretrainRuntime.of(runtime))
        self.first: LoadedEncoder | None = None
        own = is_own(recipe.objective.name)
        self.inputs = "images, tokens or code of its objective" if own else "images or tokens"

    @property
    def size(self) -> tuple[float, int, float]:
        """Epochs, images of a step, and the largest learning rate."""
        return self.recipe.optimization.epochs, self.recipe.optimization.batch_size, self.recipe.lr

    def validate(self, *, new: bool) -> None:
        """Check images, tokens, tokenizer, device and FROM of a new run, on rank 0."""
        from mapet.utils.process_group import first_process

        if self.runtime.panel_every:
            require_drawn(self.recipe.objective.name)
        if new and first_process():
            validate(self.recipe, self.runtime)
        self.labelled = labelled_data(self.recipe.data, self.runtime)
        if self.recipe.init and first_process() and (new or not self.run.last.exists()):
            self.first = load_init(self.recipe)

    def prepare(self) -> None:
        """Make what the recipe does not name: tokens, or with random crops a tokenizer."""
        prepare_tokens(self.run, self.recipe, self.runtime)

    def batches(self, fabric: "Fabric") -> "PretrainBatches":
        """Images with their tokens."""
        return pretrain_batches(self.run, self.recipe, self.runtime, fabric)

    def identity(self, batches: "PretrainBatches") -> dict[str, Any]:
        """Hashes of the tokenizer, and of the file of a user's own objective."""
        code = file_hash(self.recipe.objective.name)
        return {"tokenizer": batches.tokens.tokenizer, **({} if code is None else {"objective": code})}

    def contents(self, batches: "PretrainBatches") -> dict[str, str]:
        """A hash of some of the stored tokens."""
        return stored_tokens(batches)

    def objective(self, batches: "PretrainBatches", fabric: "Fabric") -> "nn.Module":
        """The recipe's objective."""
        from mapet.build.pretrain import build_objective

        self.guess = batches.guess()
        return build_objective(self.recipe, batches.tokens.vocabulary)

    def plan(self, batches: "PretrainBatches", objective: Any) -> Mapping[str, str]:
        """The model and what it predicts."""
        from mapet.build.objectives import objective_type

        r, millions = self.recipe, sum(p.numel() for p in objective.parameters()) / 1e6
        rows = objective_type(r.objective.name).rows(objective)
        predicted = f"{r.num_masked} of {r.grid[0] * r.grid[1]} patches predicted, {rows}"
        name = short_name(r.objective.name)
        lines = {"model": f"{r.model.name}, {millions:.1f} M parameters; {name}: {predicted}"}
        if (guess := self.guess) is not None:
            lines["guess"] = (
                f"{guess.best:.1%} of the tokens without looking at the image: {guess.accuracy:.1%} by their position, "
                f"{guess.constant:.1%} by the most frequent; {guess.bits:.2f} of a token's {guess.entropy:.2f} bits "
                "tell its position"
            )
        return lines

    def initialize(self, objective: "nn.Module", batches: "PretrainBatches") -> None:
        """Copy the weights of FROM."""
        if self.first is not None:
            begin_from(self.first, objective, self.recipe, self.run, batches.tokens.tokenizer)

    def stops(self, batches: "PretrainBatches") -> Iterable[int]:
        """The steps after every ``probe_every`` and every ``panel_every`` epochs, and the last one."""
        self.panels = Panels(self.run, self.recipe, batches)
        every = (self.runtime.probe_every, self.runtime.panel_every)
        self.probed, self.drawn = (_stops(epochs, batches) for epochs in every)
        return sorted({*self.probed, *self.drawn, batches.steps})

    def fitted(self, batches: "PretrainBatches", objective: "nn.Module", fabric: "Fabric") -> Runtime:
        """As predicted from the recipe."""
        from mapet.api.memory import fit_to_memory

        return fit_to_memory(self, batches, objective, fabric)

    def optim(self, objective: "nn.Module", batches: "PretrainBatches") -> "Optim":
        """AdamW."""
        from mapet.build.pretrain import build_optim

        return build_optim(self.recipe, objective, batches)

    def progress(self, recent: Mapping[str, float]) -> str:
        """Loss, and the accuracy of tokens next to that of a guess by position alone."""
        return f"loss {recent['loss']:.3f}{self._accuracy(recent, '  tokens')}"

    def measure(self, objective: Any, batches: "PretrainBatches", step: int, fabric: "Fabric") -> None:
        """Probe the encoder and draw a panel, if wanted."""
        if step in self.drawn and fabric.is_global_zero:
            self.panels.draw(objective, step)
        if step in self.probed and fabric.is_global_zero:
            found = probe(objective.encoder, batches.shuffled, self.labelled, self.runtime, self.recipe.seed)
            record(self.run, step, step / batches.steps_per_epoch, found)
            if self.runtime.keep_best != "none":
                keep_best(self.run, self.runtime.keep_best, step)
        fabric.barrier()

    def summary(self, objective: "nn.Module", batches: "PretrainBatches") -> str:
        """The steps, and the means of the last ones."""
        from mapet.engine.metrics_file import recent_means

        count, means = recent_means(self.run.metrics)
        if "loss" not in means:
            known = self.run.metrics.is_file() and self.run.metrics.read_bytes().count(b"\n") > 1
            return "no step had a readable image" if known else f"step {batches.steps}"
        over = f" over the last {count} steps" if count > 1 else ""
        return f"step {batches.steps}, loss {means['loss']:.3f}{self._accuracy(means, ', token accuracy')}{over}"

    def _accuracy(self, row: Mapping[str, float], name: str) -> str:
        if self.guess is None or "accuracy" not in row:
            return ""
        return f"{name} {row['accuracy']:.1%} (guess {self.guess.best:.1%})"


def _stops(epochs: float, batches: "PretrainBatches") -> set[int]:
    """The steps after every so many epochs, and the last one; none for 0."""
    every = max(1, round(epochs * batches.steps_per_epoch))
    return {*range(every, batches.steps, every), batches.steps} if epochs else set()
