"""Measure the training step: speed, memory, share of the machine's peak, and the predicted time."""

from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from mapet.config.benchmark import BenchmarkSettings
from mapet.config.flat import updated, updated_from
from mapet.config.recipe import Recipe
from mapet.utils.errors import MapetError
from mapet.utils.log import log

if TYPE_CHECKING:
    import torch

    from mapet.api.benchmark.case import Case
    from mapet.api.benchmark.report import Report

BATCH_SIZE = {"cpu": 8, "cuda": 64}
PRECISION = {"cpu": "float32", "cuda": "bfloat16"}
LISTED = {"batch_size": "batch-sizes", "precision": "precisions"}  # settings of the recipe that are given as lists


def benchmark(
    recipe: str | Path | Recipe | None = None,
    out: str | Path = "bench",
    *,
    settings: BenchmarkSettings | None = None,
    **changes: Any,
) -> "Report":
    """Measure every combination of the lists in the settings; each row is written as soon as it is measured.

    Args:
        recipe: the name of a recipe, a YAML file or a ``Recipe``, without its data and tokens; None: the defaults.
        out: folder for ``bench.json`` and ``bench.md``.
        settings: what is measured, and how.
        changes: settings of these or of the recipe by name; with ``data``, loading is measured too.

    Raises:
        MapetError: settings, images or processes that do not fit, a missing package, or a folder with a report.
    """
    from mapet.api.benchmark.hardware import provenance
    from mapet.api.benchmark.report import begin

    settings = updated_from(settings or BenchmarkSettings(), changes)
    for name in changes.keys() & LISTED.keys():
        raise MapetError(f"--{LISTED[name][:-1]} does not apply to a benchmark; use --{LISTED[name]}.")
    merged = updated(without_data(recipe), **changes)
    device = _device(settings.accelerator)
    every = cases(merged, settings, device)
    validate(every, settings, device)
    report = begin(Path(out), provenance(device))
    log.info(_wrapped(f"machine   {report.about['machine']}"))
    _measure_rates(every, device, report)
    for case in every:
        _measure_case(case, settings, device, report)
    log.info(f"\nwritten   bench.json, bench.md in {report.folder}")
    return report


def without_data(recipe: str | Path | Recipe | None) -> Recipe:
    """The recipe by name, file or value, without data and tokens."""
    from mapet.api.settings import named_recipe

    return replace(named_recipe(recipe), data="", tokens=None)


def _device(accelerator: str) -> "torch.device":
    import torch

    from mapet.engine.distributed import pick_device

    device = pick_device("cpu" if accelerator == "auto" and not torch.cuda.is_available() else accelerator)
    if device.type not in BATCH_SIZE:
        raise MapetError(f"A benchmark measures on cpu and cuda, not on {device.type}: use --accelerator cpu.")
    return device


def cases(recipe: Recipe, s: BenchmarkSettings, device: "torch.device") -> "list[Case]":
    """Every combination of the lists.

    Raises:
        MapetError: a name or number that does not fit.
    """
    from mapet.api.benchmark.case import Case
    from mapet.api.compare.plan import for_method

    lists = (
        s.objectives or (recipe.objective.name,),
        s.models or (None,),
        s.batch_sizes or (BATCH_SIZE[device.type],),
        s.precisions or (PRECISION[device.type],),
        s.compile,
    )
    found = []
    for objective, model, batch_size, precision, compiled in product(*lists):
        sizes = {"model": model, "embed_dim": None, "depth": None, "num_heads": None} if model else {}
        one = updated(for_method(recipe, objective), precision=precision, batch_size=batch_size, **sizes)
        accumulate = -(-batch_size // (s.micro_batch_size or batch_size))
        found.append(Case(one, compiled == "on", accumulate, s.baseline, recipe.tokenizer.vocab_size))
    return found


def validate(every: "list[Case]", s: BenchmarkSettings, device: "torch.device") -> None:
    """Check everything before anything is measured.

    Raises:
        MapetError: images, processes, a baseline or a package that is not available.
    """
    from mapet.api.benchmark import baselines
    from mapet.api.benchmark.loading import Loading, pretrain_batches
    from mapet.api.benchmark.measure import require_devices

    for case in every:
        if case.recipe.data:
            pretrain_batches(case, Loading(case.recipe.data, s.workers, s.cache_gib), 1, device)
        for devices in s.scaling:
            require_devices(devices, case, device)
        for name in case.baselines:
            baselines.find().require_installed(name)


def _measure_rates(every: "list[Case]", device: "torch.device", report: "Report") -> None:
    """Measure and report the machine's rates for each width and precision of the cases."""
    from mapet.api.benchmark.measure import attempt, width
    from mapet.api.benchmark.rates import measure

    def note(what: str, error: Exception) -> None:
        log.info(_wrapped(f"failed    {what}: {report.fail(what, error)}"))

    for one, precision in dict.fromkeys((width(case.recipe), case.recipe.precision) for case in every):
        what = f"{precision} products (width {one})"
        if rates := attempt(what, partial(measure, one, precision, device), note):  # else steps may still work
            report.rates = [*report.rates, rates]
            log.info(f"peak      {rates.peak / 1e12:.4g} TFLOP/s of {what}")


def _measure_case(case: "Case", s: BenchmarkSettings, device: "torch.device", report: "Report") -> None:
    """Measure, log and write the case's rows; failures are noted and the rest continues."""
    from mapet.api.benchmark.measure import measured
    from mapet.api.benchmark.report import HEADER, line, notes
    from mapet.engine.distributed import init_fabric

    def note(what: str, error: Exception) -> None:
        reason = report.fail(f"{case}{what and ', '}{what}", error)
        log.info(_wrapped(f"failed    {what}{what and ': '}{reason}"))

    log.info(f"\n{case}\n{HEADER}")
    try:
        fabric = init_fabric(accelerator=device.type, precision=case.recipe.precision)
        for row, complete in measured(case, fabric, s, note):
            report.put(row)
            if complete:
                log.info(line(row, report.rows))
                for text in notes(row, report.rows):
                    log.info(_wrapped(f"{' ' * 10}{text}"))
    except Exception as error:  # of torch, its compiler or a worker: the next case is still measured
        note("", error)


def _wrapped(text: str) -> str:
    return "\n".join(wrap(text, 80, subsequent_indent=" " * 10, break_long_words=False, break_on_hyphens=False))
