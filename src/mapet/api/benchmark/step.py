"""The training step as ``fit`` does it, timed in alternating rounds."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mapet.api.benchmark.case import Case, Implementation
from mapet.api.benchmark.clock import Spent, Timer, synchronize
from mapet.engine.fit import backward, clip
from mapet.engine.optim import adamw

if TYPE_CHECKING:
    from lightning_fabric import Fabric

WARM = 2  # warm-up steps of each implementation
ROUND = {"cpu": 0.1, "cuda": 0.5}  # minimum seconds per round


class Runner:
    """One implementation on the device, with its optimizer; the learning rate is 0, so all steps are alike.

    Attributes:
        name: of the implementation.
        memory: peak bytes on a GPU beyond what was allocated before; None on a CPU, or after a single step.
    """

    def __init__(self, implementation: Implementation, case: Case, fabric: "Fabric", warm: int = WARM) -> None:
        o = case.recipe.optimization
        self.name, self.fabric, self.limit = implementation.name, fabric, o.clip_grad
        self.accumulate = -(-case.accumulate // fabric.world_size)  # each process has a share of the batch
        before = _allocated(fabric.device)
        module = implementation.module.train()
        optimizer = adamw(module, weight_decay=o.weight_decay, betas=o.betas, no_decay=o.no_decay)
        self.model, self.optimizer = fabric.setup(torch.compile(module) if case.compiled else module, optimizer)
        self.batch = {name: self._share(tensor).to(fabric.device) for name, tensor in implementation.batch.items()}
        for _ in range(warm):
            self.step()
        self.memory = self._most(before) if warm > 1 else None

    def step(self, batch: Mapping[str, Tensor] | None = None, timer: Timer | None = None) -> None:
        """Forward, backward, clipping, optimiser; ``timer`` is marked between backward and clipping, and at the end."""
        backward(self.fabric, self.model, self.batch if batch is None else batch, self.accumulate)
        if timer:
            timer.mark()
        clip(self.fabric, self.model, self.optimizer, self.limit)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if timer:
            timer.mark()

    def _share(self, tensor: Tensor) -> Tensor:
        """This process's shard of a batch."""
        return tensor.tensor_split(self.fabric.world_size)[self.fabric.global_rank]

    def _most(self, before: int) -> int | None:
        if self.fabric.device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats(self.fabric.device)
        self.step()
        return torch.cuda.max_memory_allocated(self.fabric.device) - before


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


class Timing(NamedTuple):
    """Means of the steps of one round: the whole step, and its forward and backward pass alone.

    ``peak`` is the rate of the machine's fastest product right after it, in FLOP/s; None if unknown.
    """

    step: Spent
    passes: Spent
    peak: float | None = None


def alternate(
    runners: Sequence[Runner], rounds: int, device: torch.device, peak: Callable[[], float | None] | None = None
) -> list[list[Timing]]:
    """``rounds`` timings of each runner; every round has all of them in turn, and on all processes as many steps.

    With ``peak`` the machine is measured after each timing, as its speed may change within minutes.
    """
    once = [_round(runner, 1, device).step.wall for runner in runners]
    steps = runners[0].fabric.broadcast([max(1, math.ceil(ROUND[device.type] / seconds)) for seconds in once])
    turns = [
        [_round(runner, count, device, peak) for runner, count in zip(runners, steps, strict=True)]
        for _ in range(rounds)
    ]
    return [list(column) for column in zip(*turns, strict=True)]


def _round(runner: Runner, steps: int, device: torch.device, peak: Callable[[], float | None] | None = None) -> Timing:
    timer = Timer(device)
    synchronize(device)
    timer.mark()
    for _ in range(steps):
        runner.step(timer=timer)
    spent = timer.spent()
    passes, rest = _mean(spent[0::2]), _mean(spent[1::2])
    return Timing(Spent(passes.wall + rest.wall, passes.processor + rest.processor), passes, peak() if peak else None)


def _mean(spent: Sequence[Spent]) -> Spent:
    return Spent(*(statistics.fmean(clock) for clock in zip(*spent, strict=True)))


def over_stream(runner: Runner, stream: Iterable[Mapping[str, Tensor]], skip: int, steps: int) -> float:
    """Wall seconds a step over ``stream``, whose first ``skip`` batches do not count; at most ``steps`` do."""
    device, timer = runner.fabric.device, Timer(runner.fabric.device)
    for number, batch in enumerate(stream):
        if number == skip:
            synchronize(device)
            timer.mark()
        runner.step(batch)
        if number + 1 == skip + steps:
            break
    timer.mark()
    return timer.spent()[0].wall / steps
