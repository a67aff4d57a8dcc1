"""Measure one case."""

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch

from mapet.api.benchmark import predict, process, rates, row
from mapet.api.benchmark.case import OURS, Case, implementations, require_equal
from mapet.api.benchmark.loading import Loading, can_load, end_to_end
from mapet.api.benchmark.step import Runner, alternate
from mapet.build.footprint import predict_footprint
from mapet.build.pretrain import build_encoder, build_objective
from mapet.config.benchmark import BenchmarkSettings
from mapet.config.recipe import Recipe
from mapet.config.runtime import Runtime
from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Note = Callable[[str, Exception], None]
T = TypeVar("T")
LOADING_SECONDS, MAX_STEPS = 5.0, 30  # of a measurement with loading on a GPU


def width(recipe: Recipe) -> int:
    """D of the recipe's encoder."""
    with torch.device("meta"):
        return build_encoder(recipe).embed_dim


def measured(case: Case, fabric: "Fabric", s: BenchmarkSettings, note: Note) -> Iterator[tuple[row.Row, bool]]:
    """The rows of one case, each with whether it is complete: ours, its baselines, then ours in several processes.

    A row comes as soon as its steps are timed, and again with what takes longer: memory and loading. Failures are
    passed to ``note``; the rest continues.

    Raises:
        MapetError: implementations that disagree.
    """
    gc.collect()  # an earlier failure may hold device memory in reference cycles
    if case.compiled:
        torch._dynamo.reset()  # drop the code of the previous case
    every = implementations(case)
    require_equal(every, case, fabric)
    tried = [attempt(one.name, partial(Runner, one, case, fabric), note) for one in every]
    if runners := [one for one in tried if one is not None]:
        yield from _timed(runners, case, fabric, s, note)
    yield from ((one, True) for one in scaled(case, s, fabric.device, note))


def attempt(what: str, work: Callable[[], T], note: Note) -> T | None:
    """The result of ``work``; None and a note if it fails."""
    try:
        return work()
    except Exception as error:
        note(what, error)
        return None


def _timed(
    runners: Sequence[Runner], case: Case, fabric: "Fabric", s: BenchmarkSettings, note: Note
) -> Iterator[tuple[row.Row, bool]]:
    seen: list[rates.Rates] = []
    count = batch_rows(case)
    rate = partial(rates.measure, width(case.recipe), case.recipe.precision, fabric.device, rows=count)

    def peak() -> float | None:
        found = attempt(f"products of {count} rows", rate, note)
        seen.extend([found] if found else [])
        return found.peak if found else None

    rows = []
    for runner, own in zip(runners, alternate(runners, s.rounds, fabric.device, peak), strict=True):
        about = _counted(case, seen, fabric.device) if runner.name == OURS else {}
        rows.append(row.of(case, runner.name, own, memory=runner.memory, threads=torch.get_num_threads(), **about))
    yield from ((one, False) for one in rows)
    for runner, one in zip(runners, rows, strict=True):
        yield _completed(one, runner, case, fabric, s, note), True


def _completed(one: row.Row, runner: Runner, case: Case, fabric: "Fabric", s: BenchmarkSettings, note: Note) -> row.Row:
    """The row with memory and loading."""
    loading, memory, name = None, one.memory, runner.name
    if case.recipe.data and can_load(name):
        images = Loading(case.recipe.data, s.workers, s.cache_gib)
        steps = _steps(one.step[0], s.rounds, fabric.device)
        loading = attempt(f"{name} with loading", partial(end_to_end, runner, case, images, steps, fabric), note)
    if memory is None and not s.skip_memory:
        memory = attempt(f"memory of {name}", partial(process.memory, case, name, fabric.device.type), note)
    return replace(one, memory=memory, loading=loading)


def _steps(seconds: float, rounds: int, device: torch.device) -> int:
    return rounds if device.type == "cpu" else max(rounds, min(MAX_STEPS, math.ceil(LOADING_SECONDS / seconds)))


def batch_rows(case: Case) -> int:
    """Rows of a batch in a block of the encoder, those of other blocks included."""
    with torch.device("meta"):
        objective = build_objective(case.recipe, case.vocabulary)
    encoder = objective.encoder
    return case.batch * objective.work().states // (encoder.embed_dim * len(encoder.blocks))


def _counted(case: Case, seen: Sequence[rates.Rates], device: torch.device) -> dict[str, object]:
    """FLOP and predicted memory of our step, and its predicted time if the machine's rates are known."""
    with torch.device("meta"):
        objective = build_objective(case.recipe, case.vocabulary)
    runtime = Runtime(micro_batch_size=-(-case.batch // case.accumulate))
    memory = predict_footprint(case.recipe, runtime, vocabulary=case.vocabulary, device=device.type).total
    found = {"flop": 2.0 * objective.macs(training=True), "predicted_memory": memory}
    if not seen:
        return found
    parts = predict.parts(objective, case.batch, rates.median(seen))
    return {**found, "predicted": sum(parts.values()), "parts": parts}


def scaled(case: Case, s: BenchmarkSettings, device: torch.device, note: Note) -> Iterator[row.Row]:
    """Ours with each number of processes; on a CPU every process has the same number of threads."""
    threads = max(1, torch.get_num_threads() // max(s.scaling, default=1))
    for devices in s.scaling:
        pace = partial(process.pace, case, devices, s.rounds, device.type, threads)
        if timings := attempt(f"{devices} processes", pace, note):
            yield row.of(case, row.SCALING, timings, devices=devices, threads=threads)


def require_devices(devices: int, case: Case, device: torch.device) -> None:
    """Refuse a number of processes that does not divide the batch, or exceeds the number of GPUs.

    Raises:
        MapetError: with the number.
    """
    if case.batch % devices:
        raise MapetError(f"--scaling {devices} must divide the batch of {case.batch}.")
    if device.type == "cuda" and devices > torch.cuda.device_count():
        raise MapetError(f"--scaling {devices} is more than the {torch.cuda.device_count()} GPUs of this machine.")
