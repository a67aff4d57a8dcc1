"""One case from its recipe to its rows."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from mapet.assemble import build_encoder, build_objective
from mapet.bench import predict, process, rates, row
from mapet.bench.case import OURS, Case, contestants, require_equal
from mapet.bench.loading import LOADERS, Loading, end_to_end
from mapet.bench.step import Runner, alternate
from mapet.errors import MapetError
from mapet.recipe import Recipe

if TYPE_CHECKING:
    from lightning_fabric import Fabric

LOADED, MOST = 5.0, 30  # seconds that a measurement with loading should take on a GPU, and steps at the most


@dataclass(frozen=True)
class Settings:
    """How a case is measured.

    Attributes:
        rounds: timings of each contestant.
        loading: where pictures come from, to measure with loading too; None for steps alone.
        scaling: numbers of processes.
        peak: whether to measure memory on a CPU, which takes a process for each contestant.
    """

    rounds: int = 5
    loading: Loading | None = None
    scaling: tuple[int, ...] = ()
    peak: bool = True


def width(recipe: Recipe) -> int:
    """D of the recipe's encoder."""
    with torch.device("meta"):
        return build_encoder(recipe).embed_dim


def measured(case: Case, known: rates.Rates, fabric: "Fabric", how: Settings) -> Iterator[row.Row]:
    """The rows of one case: ours, its rivals, and then ours in several processes.

    Raises:
        MapetError: contestants that disagree, pictures that cannot be had, or a process that failed.
    """
    if case.compiled:
        torch._dynamo.reset()  # a case's code is not kept for the next
    every = contestants(case)
    require_equal(every, case, fabric)
    runners = [Runner(one, case, fabric) for one in every]
    peak = partial(rates.peak, known.width, known.precision, fabric.device)
    timings = alternate(runners, how.rounds, fabric.device, peak)
    for runner, own in zip(runners, timings, strict=True):
        loading = None
        if how.loading is not None and runner.name in LOADERS:
            steps = _steps(own[0].step.wall, how.rounds, fabric.device)
            loading = end_to_end(runner, case, how.loading, steps, fabric)
        memory = runner.memory
        if memory is None and how.peak:
            memory = process.memory(case, runner.name, fabric.device.type)
        about = {"memory": memory, "loading": loading, "threads": torch.get_num_threads()}
        yield row.of(case, runner.name, own, **about, **(_counted(case, known) if runner.name == OURS else {}))
    yield from scaled(case, how, fabric.device)


def _steps(seconds: float, rounds: int, device: torch.device) -> int:
    return rounds if device.type == "cpu" else max(rounds, min(MOST, math.ceil(LOADED / seconds)))


def _counted(case: Case, known: rates.Rates) -> dict[str, object]:
    """What ours costs, and what it should take."""
    with torch.device("meta"):
        objective = build_objective(case.recipe, case.vocabulary)
    parts = predict.parts(objective, case.batch, known)
    return {"flop": 2.0 * objective.macs(training=True), "predicted": sum(parts.values()), "parts": parts}


def scaled(case: Case, how: Settings, device: torch.device) -> Iterator[row.Row]:
    """Ours with its batch shared by each number of processes; on a CPU all of them have equally many threads.

    Raises:
        MapetError: a number that does not divide the batch, or more than there are GPUs.
    """
    threads = max(1, torch.get_num_threads() // max(how.scaling, default=1))
    for devices in how.scaling:
        require_devices(devices, case, device)
        timings = process.pace(case, devices, how.rounds, device.type, threads)
        yield row.of(case, row.SCALING, timings, devices=devices, threads=threads)


def require_devices(devices: int, case: Case, device: torch.device) -> None:
    """Refuse a number of processes that cannot work."""
    if devices < 1 or case.batch % devices:
        raise MapetError(f"--scaling {devices} does not fit: it must divide the batch of {case.batch}.")
    if device.type == "cuda" and devices > torch.cuda.device_count():
        raise MapetError(f"--scaling {devices} does not fit: this machine has {torch.cuda.device_count()} GPUs.")


def rates_of(recipes: Sequence[Recipe], device: torch.device) -> list[rates.Rates]:
    """The machine's rates for each width and precision among the recipes."""
    asked = dict.fromkeys((width(recipe), recipe.precision) for recipe in recipes)
    return [rates.measure(*one, device) for one in asked]
