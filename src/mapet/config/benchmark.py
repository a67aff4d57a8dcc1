"""Settings of ``mapet bench``."""

from dataclasses import dataclass
from typing import Any

from mapet.config.compare import check_names, names_of
from mapet.config.recipe import OBJECTIVES
from mapet.utils.errors import MapetError

BASELINES = {"dense": ("mapet",), "transformers": ("mim", "mae")}  # with the objectives that each implements
LISTS = ("objectives", "models", "batch_sizes", "precisions", "compile", "baseline", "scaling")


@dataclass(frozen=True)
class BenchmarkSettings:
    """What is measured and how; lists may also be one value, or one string with commas.

    Raises:
        MapetError: on creation: a name or number that makes no sense.
    """

    objectives: tuple[str, ...] = ()
    """Objectives, separated by commas; none: the recipe's."""
    models: tuple[str, ...] = ()
    """Models, separated by commas; none: the recipe's."""
    batch_sizes: tuple[int, ...] = ()
    """Images per step, separated by commas; none: 8 on a CPU, 64 on a GPU."""
    precisions: tuple[str, ...] = ()
    """float32, bfloat16, or both; none: float32 on a CPU, bfloat16 on a GPU."""
    compile: tuple[str, ...] = ("off",)
    """Use torch.compile: off, on, or off,on for both."""
    micro_batch_size: int | None = None
    """Images per micro-batch, to save memory; None: the whole batch."""
    rounds: int = 5
    """Timings of each implementation; the median is reported."""
    baseline: tuple[str, ...] = ()
    """Also measure dense (mapet as published), transformers (mim and mae, version 5), or both; needs a clone of the
    repository."""
    scaling: tuple[int, ...] = ()
    """Also measure with these numbers of processes sharing the batch, for instance 1,2,4."""
    skip_memory: bool = False
    """Do not measure peak memory, which on a CPU takes a separate process per implementation."""
    accelerator: str = "auto"
    """auto, cpu or cuda."""
    workers: int | None = None
    """Processes that decode images; None: up to 8 with a GPU, none on a CPU."""
    cache_gib: float = 2.0
    """Cache decoded images in memory if they fit into so many GiB."""

    def __post_init__(self) -> None:
        for name in LISTS:
            values: tuple[Any, ...] = names_of(getattr(self, name))
            if name in ("batch_sizes", "scaling"):
                values = _numbers(name.replace("_", "-"), values)
            if name == "compile":
                values = tuple({"True": "on", "False": "off"}.get(value, value) for value in values) or ("off",)
            object.__setattr__(self, name, values)
        check_names("objectives", self.objectives, OBJECTIVES)
        check_names("compile", self.compile, ("off", "on"))
        check_names("baseline", self.baseline, BASELINES)
        for option, value, fits, bound in (
            ("rounds", self.rounds, self.rounds >= 1, ">= 1"),
            (
                "micro-batch-size",
                self.micro_batch_size,
                self.micro_batch_size is None or self.micro_batch_size >= 1,
                ">= 1",
            ),
            ("workers", self.workers, self.workers is None or self.workers >= 0, ">= 0"),
            ("cache-gib", self.cache_gib, self.cache_gib >= 0, ">= 0"),
        ):
            if not fits:
                raise MapetError(f"--{option} must be {bound}, got {value}.")


def _numbers(option: str, values: tuple[str, ...]) -> tuple[int, ...]:
    for value in values:
        if not (value.isdecimal() and int(value)):
            raise MapetError(f'--{option} takes whole numbers > 0, separated by commas, got "{value}".')
    return tuple(map(int, values))
