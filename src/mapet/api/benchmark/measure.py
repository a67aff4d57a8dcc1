"""One case from its recipe to its rows."""

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch

from mapet.api.benchmark import predict, process, rates, row
from mapet.api.benchmark.case import OURS, Case, implementations, require_equal
from mapet.api.benchmark.loading import LOADERS, Loading, end_to_end
from mapet.api.benchmark.step import Runner, alternate
from mapet.build.pretrain import build_encoder, build_objective
from mapet.config.recipe import Recipe
from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Note = Callable[[str, Exception], None]
T = TypeVar("T")
LOADED, MOST = 5.0, 30  # seconds that a measurement with loading should take on a GPU, and steps at the most


@dataclass(frozen=True)
class Settings:
    """How a case is measured.

    Attributes:
        rounds: timings of each contestant.
        loading: where images come from, to measure with loading too; None for steps alone.
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


def measured(case: Case, fabric: "Fabric", how: Settings, note: Note) -> Iterator[tuple[row.Row, bool]]:
    """The rows of one case, each with whether it is whole: ours, its rivals, and then ours in several processes.

    Rows come as soon as their steps are timed, and again with what takes longer: memory and loading. What cannot be
    measured is told to ``note``, and missing; the rest goes on.

    Raises:
        MapetError: contestants that disagree.
    """
    gc.collect()  # what failed before may hold memory of the device in cycles
    if case.compiled:
        torch._dynamo.reset()  # a case's code is not kept for the next
    every = implementations(case)
    require_equal(every, case, fabric)
    tried = [attempt(one.name, partial(Runner, one, case, fabric), note) for one in every]
    if runners := [one for one in tried if one is not None]:
        yield from _timed(runners, case, fabric, how, note)
    yield from ((one, True) for one in scaled(case, how, fabric.device, note))


def attempt(what: str, work: Callable[[], T], note: Note) -> T | None:
    """What ``work`` gives; where it fails None, and a note."""
    try:
        return work()
    except Exception as error:
        note(what, error)
        return None


def _timed(
    runners: Sequence[Runner], case: Case, fabric: "Fabric", how: Settings, note: Note
) -> Iterator[tuple[row.Row, bool]]:
    seen: list[rates.Rates] = []
    count = batch_rows(case)
    rate = partial(rates.measure, width(case.recipe), case.recipe.precision, fabric.device, rows=count)

    def look() -> float | None:
        found = attempt(f"products of {count} rows", rate, note)
        seen.extend([found] if found else [])
        return found.peak if found else None

    rows = []
    for runner, own in zip(runners, alternate(runners, how.rounds, fabric.device, look), strict=True):
        about = _counted(case, seen) if runner.name == OURS else {}
        rows.append(row.of(case, runner.name, own, memory=runner.memory, threads=torch.get_num_threads(), **about))
    yield from ((one, False) for one in rows)
    for runner, one in zip(runners, rows, strict=True):
        yield _whole(one, runner, case, fabric, how, note), True


def _whole(one: row.Row, runner: Runner, case: Case, fabric: "Fabric", how: Settings, note: Note) -> row.Row:
    """The row with memory and loading."""
    loading, memory, name = None, one.memory, runner.name
    if how.loading is not None and name in LOADERS:
        steps = _steps(one.step[0], how.rounds, fabric.device)
        loading = attempt(f"{name} with loading", partial(end_to_end, runner, case, how.loading, steps, fabric), note)
    if memory is None and how.peak:
        memory = attempt(f"memory of {name}", partial(process.memory, case, name, fabric.device.type), note)
    return replace(one, memory=memory, loading=loading)


def _steps(seconds: float, rounds: int, device: torch.device) -> int:
    return rounds if device.type == "cpu" else max(rounds, min(MOST, math.ceil(LOADED / seconds)))


def batch_rows(case: Case) -> int:
    """Rows of a batch in one of the encoder's blocks, those of other blocks added."""
    with torch.device("meta"):
        objective = build_objective(case.recipe, case.vocabulary)
    encoder = objective.encoder
    return case.batch * objective.work().states // (encoder.embed_dim * len(encoder.blocks))


def _counted(case: Case, seen: Sequence[rates.Rates]) -> dict[str, object]:
    """What ours costs, and what it should take where the machine's rates were seen."""
    with torch.device("meta"):
        objective = build_objective(case.recipe, case.vocabulary)
    flop = 2.0 * objective.macs(training=True)
    if not seen:
        return {"flop": flop}
    parts = predict.parts(objective, case.batch, rates.median(seen))
    return {"flop": flop, "predicted": sum(parts.values()), "parts": parts}


def scaled(case: Case, how: Settings, device: torch.device, note: Note) -> Iterator[row.Row]:
    """Ours with its batch shared by each number of processes; on a CPU all of them have equally many threads."""
    threads = max(1, torch.get_num_threads() // max(how.scaling, default=1))
    for devices in how.scaling:
        pace = partial(process.pace, case, devices, how.rounds, device.type, threads)
        if timings := attempt(f"{devices} processes", pace, note):
            yield row.of(case, row.SCALING, timings, devices=devices, threads=threads)


def require_devices(devices: int, case: Case, device: torch.device) -> None:
    """Refuse a number of processes that cannot work.

    Raises:
        MapetError: it does not divide the batch, or there are fewer GPUs.
    """
    if devices < 1 or case.batch % devices:
        raise MapetError(f"--scaling {devices} does not fit: it must divide the batch of {case.batch}.")
    if device.type == "cuda" and devices > torch.cuda.device_count():
        raise MapetError(f"--scaling {devices} does not fit: this machine has {torch.cuda.device_count()} GPUs.")
