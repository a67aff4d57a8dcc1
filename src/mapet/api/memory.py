"""Memory known before the first step: how much a training needs, and the micro-batch size that fits."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mapet.api.kept_runtime import keep
from mapet.config.objectives import is_own
from mapet.config.recipe import Recipe
from mapet.config.runtime import Runtime
from mapet.utils.errors import MapetError, reason
from mapet.utils.log import log

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import nn

    from mapet.api.training import Job
    from mapet.build.batches import PretrainBatches
    from mapet.engine.footprint import Footprint

MARGIN = 1.15  # of available over needed memory: predictions are within 15 % of the measured peak
WAYS_OUT = "--grad-checkpointing, a smaller --model or a smaller --image-size"


@dataclass(frozen=True)
class Need:
    """Predicted peak of one process in bytes.

    Attributes:
        footprint: of the training itself.
        process: on a CPU, what the process holds before: Python, torch, an online tokenizer.
        loading: decoded images and workers.
        held: weights that exist already.
    """

    footprint: "Footprint"
    process: int = 0
    loading: int = 0
    held: int = 0

    @property
    def more(self) -> int:
        """What is not in use yet."""
        return self.footprint.total + self.loading - self.held

    @property
    def total(self) -> int:
        """All of it."""
        return self.footprint.total + self.process + self.loading

    def __str__(self) -> str:
        parts = {"process": self.process, "images": self.loading + self.footprint.batch, **self.footprint.parts}
        return f"{in_units(self.total)} at the peak: {listed(parts)}"


def memory_of(recipe: Recipe, runtime: Runtime | None = None, device: str | None = None) -> "Footprint | None":
    """What a training of the recipe needs beyond the process itself; None if its objective needs values.

    Args:
        recipe: its images are not counted.
        runtime: micro-batches, processes, recomputation; None: the defaults.
        device: ``"cpu"`` or ``"cuda"``; None: what training would use here.
    """
    from mapet.build.footprint import predict_footprint
    from mapet.engine.distributed import pick_device

    kind = "cuda" if (device or pick_device().type) == "cuda" else "cpu"
    try:
        return predict_footprint(recipe, runtime, device=kind)
    except Exception as error:  # of a user's own objective, or of fake tensors on a device that was not tried
        if not is_own(recipe.objective.name):
            log.info(f"note      the memory cannot be predicted here ({type(error).__name__})")
        return None


def fit_to_memory(job: "Job[Recipe]", batches: "PretrainBatches", objective: "nn.Module", fabric: "Fabric") -> Runtime:
    """Log the memory that a pre-training needs; choose a micro-batch size if none is given and the batch does not fit.

    Where the batch fits, or the memory is unknown, nothing changes. All processes call it and choose alike.

    Returns:
        The job's runtime settings, with the chosen micro-batch size.

    Raises:
        MapetError: one image at a time does not fit.
    """
    from mapet.engine.distributed import all_reduce_max
    from mapet.engine.memory import available

    runtime, size = job.runtime, share_of(job)
    room = available(fabric.device)
    if room is not None and fabric.device.type == "cpu":
        room //= runtime.devices
    try:
        need = _need(job, runtime, batches, objective, fabric)
    except Exception as error:  # of a user's own objective, which may need values
        if not is_own(job.recipe.objective.name):
            raise
        log.info(f"memory    not predicted: {type(error).__name__}: {reason(error)}")
        return runtime
    whole = need
    while _exceeds(need, room) and size > 1 and job.runtime.micro_batch_size is None:
        size = -(-size // 2)
        runtime = replace(job.runtime, micro_batch_size=size)
        need = _need(job, runtime, batches, objective, fabric)
    parts, impossible = all_reduce_max(fabric, 0, runtime.parts(job.size[1]), int(_exceeds(need, room)))
    if parts > runtime.parts(job.size[1]):  # another process has less memory
        runtime = replace(runtime, micro_batch_size=-(-share_of(job) // parts))
    log.info(f"memory    {need}" + ("" if room is None else f"; {in_units(room)} more are available"))
    if impossible and job.runtime.micro_batch_size is None:
        raise MapetError(
            f"One image at a time needs {in_units(need.more)} of memory, and {in_units(room or 0)} are available: use "
            f"{WAYS_OUT}."
        )
    if impossible:
        log.info("note      this may not fit: use a smaller --micro-batch-size")
    elif runtime != job.runtime:
        at_once = f"the batch at once needs {in_units(whole.more)}"
        log.info(
            f"note      {at_once}: --micro-batch-size {runtime.micro_batch_size} is chosen, with the same gradients"
        )
    return runtime


def _need(
    job: "Job[Recipe]", runtime: Runtime, batches: "PretrainBatches", objective: "nn.Module", fabric: "Fabric"
) -> Need:
    from mapet.build.footprint import loading_bytes, predict_footprint
    from mapet.engine.memory import resident

    kind = "cuda" if fabric.device.type == "cuda" else "cpu"
    found = predict_footprint(job.recipe, runtime, vocabulary=batches.tokens.vocabulary, device=kind)
    loading = loading_bytes(batches.shuffled)
    if kind == "cuda":
        return Need(found, 0, loading if batches.shuffled.held else 0)
    held = _held(objective)
    return Need(found, max(0, (resident() or 0) - held), loading, held)


def _held(objective: "nn.Module") -> int:
    return sum(tensor.nbytes for tensor in (*objective.parameters(), *objective.buffers()))


def _exceeds(need: Need, room: int | None) -> bool:
    return room is not None and MARGIN * need.more > room


def share_of(job: "Job[Any]") -> int:
    """Images of a step on one device."""
    return max(1, job.size[1] // job.runtime.processes)


class Halving:
    """Answers a step that does not fit into memory: once with half the micro-batch size, then with the way out."""

    def __init__(self, job: "Job[Any]", objective: "nn.Module", fabric: "Fabric") -> None:
        self.job, self.used = job, False
        # Several processes would have to agree in the middle of a step; a VQ-KD notes its images in each pass.
        notes = any(hasattr(module, "discard_last") for module in objective.modules())
        self.possible = fabric.world_size == 1 and not notes

    def __call__(self) -> int:
        """The micro-batches of this and all later steps.

        Raises:
            MapetError: the second time, or with one image or several processes.
        """
        job, share = self.job, share_of(self.job)
        size = -(-share // job.runtime.parts(job.size[1]))
        half = -(-size // 2)
        if self.used or not self.possible or size == 1:
            smaller = f"--micro-batch-size {half}, " if size > 1 else ""
            raise MapetError(f"A step of {size} images at a time does not fit into memory: use {smaller}{WAYS_OUT}.")
        self.used = True
        job.runtime = replace(job.runtime, micro_batch_size=half)
        keep(job.runtime, job.run.folder)
        log.info(f"note      {size} images at a time do not fit into memory: --micro-batch-size {half} from here on")
        return job.runtime.parts(job.size[1])


def listed(parts: Mapping[str, int]) -> str:
    """Bytes by name as text, without those that are 0."""
    return ", ".join(f"{name} {in_units(count)}" for name, count in parts.items() if count)


def in_units(count: float) -> str:
    """Bytes as text: "512 B", "1.5 MiB"."""
    size, units = float(count), ["B", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} {units[0]}" if size >= 10 or units[0] == "B" else f"{size:.1f} {units[0]}"
