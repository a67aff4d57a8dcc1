"""``mapet bench``: how fast a training step is here, beside other formulations of it and what the machine could do."""

from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from textwrap import wrap
from typing import TYPE_CHECKING

from mapet.cli.options import listed
from mapet.config.recipe import Recipe
from mapet.utils.errors import MapetError, nearest
from mapet.utils.log import say

if TYPE_CHECKING:
    import torch

    from mapet.api.benchmark.case import Case
    from mapet.api.benchmark.measure import Settings
    from mapet.api.benchmark.report import Report


BATCH = {"cpu": "8", "cuda": "64"}


PRECISION = {"cpu": "float32", "cuda": "bfloat16"}


LISTS = {"optimization.batch_size": "batch-sizes", "precision": "precisions"}  # settings that only the lists give


SWITCH = {"off": False, "on": True}


@dataclass(frozen=True)
class Options:
    """Options of ``mapet bench RECIPE``."""

    out: str = "bench"
    """Folder for bench.json and bench.md."""
    objectives: str = ""
    """Objectives, separated by commas; none: the recipe's."""
    models: str = ""
    """Models, separated by commas; none: the recipe's."""
    batch_sizes: str = ""
    """Images a step, separated by commas; none: 8 on a CPU, 64 on a GPU."""
    precisions: str = ""
    """float32, bfloat16, or both; none: float32 on a CPU, bfloat16 on a GPU."""
    compile: str = "off"
    """Through torch.compile: off, on, or off,on for both."""
    micro_batch_size: int | None = None
    """Images worked on at once, to save memory; None: the whole batch."""
    rounds: int = 5
    """Timings of each, of which the median is told."""
    against: str = ""
    """dense (mapet as its authors compute it), transformers (for mim and mae, version 5), or both."""
    scaling: str = ""
    """Numbers of processes that share the batch, for instance 1,2,4: these are measured too."""
    skip_memory: bool = False
    """Leave the peak memory out: on a CPU it takes a process of its own for each contestant."""
    vocabulary: int = 8192
    """Number of different tokens."""
    accelerator: str = "auto"
    """auto, cpu or cuda."""
    workers: int | None = None
    """Processes that decode images; None: up to 8 beside a GPU, none on a CPU."""
    cache_gib: float = 2.0
    """Decoded images are held in memory when they fit into so many GiB."""
    recipe: Recipe = field(default_factory=Recipe)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def cases(o: Options, device: "torch.device") -> "list[Case]":
    """Every combination of the lists.

    Raises:
        MapetError: a name or number that does not fit.
    """
    from mapet.api.benchmark.case import Case
    from mapet.api.compare.plan import check_names, for_method
    from mapet.config.checks import OBJECTIVES

    r = o.recipe
    check_names("objectives", listed(o.objectives), OBJECTIVES)
    lists = (
        listed(o.objectives) or (r.objective.objective,),
        listed(o.models) or (None,),
        _numbers("batch-sizes", o.batch_sizes or BATCH[device.type]),
        listed(o.precisions or PRECISION[device.type]),
        _switches(o.compile),
    )
    found = []
    for objective, model, batch, precision, compiled in product(*lists):
        named = replace(r.model, model=model, embed_dim=None, depth=None, num_heads=None) if model else r.model
        recipe = replace(
            for_method(r, objective),
            model=named,
            precision=precision,
            optimization=replace(r.optimization, batch_size=batch),
        )
        parts = -(-batch // (o.micro_batch_size or batch))
        found.append(Case(recipe, compiled, parts, listed(o.against), o.vocabulary))
    return found


def settings(o: Options) -> "Settings":
    """How each case is measured.

    Raises:
        MapetError: a number that does not fit.
    """
    from mapet.api.benchmark.loading import Loading
    from mapet.api.benchmark.measure import Settings

    for option, fits, wanted in (
        ("rounds", o.rounds >= 1, "at least 1"),
        ("micro-batch-size", o.micro_batch_size is None or o.micro_batch_size >= 1, "at least 1"),
        ("vocabulary", o.vocabulary >= 1, "at least 1"),
        ("workers", o.workers is None or o.workers >= 0, "at least 0"),
    ):
        if not fits:
            raise MapetError(f"--{option} does not fit: it must be {wanted}.")
    loading = Loading(o.recipe.data, o.workers, o.cache_gib) if o.recipe.data else None
    return Settings(o.rounds, loading, _numbers("scaling", o.scaling), not o.skip_memory)


def validate(every: "list[Case]", how: "Settings", device: "torch.device") -> None:
    """Find what cannot work before anything is measured.

    Raises:
        MapetError: images, processes or a package that cannot be had.
    """
    from mapet.api.benchmark.loading import pretrain_batches
    from mapet.api.benchmark.measure import require_devices
    from mapet.api.benchmark.peers import installed

    for case in every:
        if how.loading is not None:
            pretrain_batches(case, how.loading, 1, device)
        for devices in how.scaling:
            require_devices(devices, case, device)
        if "transformers" in case.baselines:
            installed()


def _rate(every: "list[Case]", device: "torch.device", report: "Report") -> None:
    """The machine's rates for each width and precision of the cases, onto the screen and into the report."""
    from mapet.api.benchmark.measure import attempt, width
    from mapet.api.benchmark.rates import measure

    def note(what: str, error: Exception) -> None:
        say(_wrapped(f"failed    {what}: {report.fail(what, error)}"))

    for one, precision in dict.fromkeys((width(case.recipe), case.recipe.precision) for case in every):
        what = f"{precision} products (width {one})"
        if rates := attempt(
            what, partial(measure, one, precision, device), note
        ):  # else the steps may work all the same
            report.rates = [*report.rates, rates]
            say(f"peak      {rates.peak / 1e12:.4g} TFLOP/s of {what}")


def _measure(case: "Case", how: "Settings", device: "torch.device", report: "Report") -> None:
    """The case's rows, onto the screen and into the files; whatever fails is noted, and the others go on."""
    from mapet.api.benchmark.measure import measured
    from mapet.api.benchmark.report import SCREEN, line, notes
    from mapet.engine.distributed import init_fabric

    def note(what: str, error: Exception) -> None:
        reason = report.fail(f"{case}{what and ', '}{what}", error)
        say(_wrapped(f"failed    {what}{what and ': '}{reason}"))

    say(f"\n{case}\n{SCREEN}")
    try:
        fabric = init_fabric(accelerator=device.type, precision=case.recipe.precision)
        for row, whole in measured(case, fabric, how, note):
            report.put(row)
            if whole:
                say(line(row, report.rows))
                for text in notes(row, report.rows):
                    say(_wrapped(f"{' ' * 10}{text}"))
    except Exception as error:  # of torch, its compiler or a worker: no reason to lose the next case
        note("", error)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    numbers = listed(text)
    if not all(number.isdecimal() and int(number) for number in numbers):
        raise MapetError(f'--{option} takes whole numbers above 0, separated by commas, got "{text}".')
    return tuple(map(int, numbers))


def _switches(text: str) -> tuple[bool, ...]:
    for word in listed(text):
        if word not in SWITCH:
            raise MapetError(f'--compile takes off, on or off,on, got "{word}".{nearest(word, SWITCH)}')
    return tuple(SWITCH[word] for word in listed(text)) or (False,)


def _wrapped(text: str) -> str:
    return "\n".join(wrap(text, 80, subsequent_indent=" " * 10, break_long_words=False, break_on_hyphens=False))
