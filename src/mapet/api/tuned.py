"""What a fine-tuning and a segmentation share: tests on the way and at the end of a supervised training."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from math import ceil
from typing import TYPE_CHECKING, Any, TypeVar

from mapet.api.finetune_inputs import record
from mapet.api.training import Job
from mapet.config.finetune import FinetuneRecipe
from mapet.config.runtime import Runtime
from mapet.config.segmentation import SegmentRecipe
from mapet.utils.errors import MapetError
from mapet.utils.log import log

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mapet.engine.run import Run
    from mapet.evals.score import Score

T = TypeVar("T", bound=FinetuneRecipe | SegmentRecipe)


class Tuned(Job[T]):
    """A training from an encoder's weights, which is tested after every ``evaluate_every`` epochs and at the end."""

    about: dict[str, Any]

    def __init__(self, run: "Run", recipe: T, runtime: Runtime, evaluate_every: int = 0) -> None:
        super().__init__(run, recipe, runtime)
        if evaluate_every < 0:
            raise MapetError(f"--evaluate-every must be >= 0, got {evaluate_every}.")
        self.evaluate_every = evaluate_every

    @property
    @abstractmethod
    def protocol(self) -> str:
        """The description under which the scores are reported."""

    @abstractmethod
    def scores(self, objective: Any, fabric: "Fabric") -> "dict[str, Score]":
        """The scores on the test images, which the processes share."""

    @property
    def size(self) -> tuple[float, int, float]:
        """Epochs, images of a step, and the largest learning rate."""
        return self.recipe.optimization.epochs, self.recipe.optimization.batch_size, self.recipe.lr

    def stops(self, batches: Any) -> Iterable[int]:
        """The steps at the end of every ``evaluate_every`` epochs, and the last one."""
        every, epochs = self.evaluate_every, ceil(self.recipe.optimization.epochs)
        between = [epoch * batches.steps_per_epoch for epoch in (range(every, epochs, every) if every else ())]
        return [*(step for step in between if step < batches.steps), batches.steps]

    def progress(self, recent: Mapping[str, float]) -> str:
        """Loss and training accuracy."""
        return f"loss {recent['loss']:.3f}  training accuracy {recent['accuracy']:.1%}"

    def measure(self, objective: Any, batches: Any, step: int, fabric: "Fabric") -> None:
        """Test, and add the scores to the run's."""
        t, epochs = self.recipe, self.recipe.optimization.epochs
        epoch = epochs if step == batches.steps else step // batches.steps_per_epoch
        scores = self.scores(objective, fabric)
        log.info(f"protocol  {self.protocol}")
        width = max(9, *map(len, scores))
        for name, score in scores.items():
            log.info(f"{name:<{width}} {score} of {score.count:,} test images, after epoch {epoch:g} of {epochs:g}")
        if fabric.is_global_zero:
            about = {"protocol": self.protocol, "step": step, "epoch": epoch, "data": t.data, "limit": t.max_images}
            record(self.run, about, scores)
        fabric.barrier()

    def summary(self, objective: Any, batches: Any) -> str:
        """The last step."""
        return f"step {batches.steps}"
