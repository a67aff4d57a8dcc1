"""Settings of ``mapet bench``."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from mapet.config.compare import check_names
from mapet.config.recipe import OBJECTIVES
from mapet.config.setting import COMMAS, Count, Counts, Names, Rate, names_of, settings

BASELINES = {"dense": ("mapet",), "transformers": ("mim", "mae")}  # with the objectives that each implements
SWITCH = {"True": "on", "False": "off"}


def _switches(given: Any) -> tuple[str, ...]:
    """off and on, also from truth values."""
    return tuple(SWITCH.get(name, name) for name in names_of(given)) or ("off",)


@settings
class BenchmarkSettings:
    """What is measured and how; lists may also be one value, or one string with commas.

    Raises:
        MapetError: on creation: a name or number that makes no sense.
    """

    objectives: Names = ()
    """Objectives, separated by commas; none: the recipe's."""
    models: Names = ()
    """Models, separated by commas; none: the recipe's."""
    batch_sizes: Counts = ()
    """Images per step, separated by commas; none: 8 on a CPU, 64 on a GPU."""
    precisions: Names = ()
    """float32, bfloat16, or both; none: float32 on a CPU, bfloat16 on a GPU."""
    compile: Annotated[tuple[str, ...], BeforeValidator(_switches), COMMAS] = ("off",)
    """Use torch.compile: off, on, or off,on for both."""
    micro_batch_size: Count | None = None
    """Images per micro-batch, to save memory; None: the whole batch."""
    rounds: Count = 5
    """Timings of each implementation; the median is reported."""
    baseline: Names = ()
    """Also measure dense (mapet as published), transformers (mim and mae, version 5), or both; needs a clone of the
    repository."""
    scaling: Counts = ()
    """Also measure with these numbers of processes sharing the batch, for instance 1,2,4."""
    skip_memory: bool = False
    """Do not measure peak memory, which on a CPU takes a separate process per implementation."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """auto, cpu or cuda."""
    workers: Annotated[int | None, Field(ge=0)] = None
    """Processes that decode images; None: up to 8 with a GPU, none on a CPU."""
    cache_gib: Rate = 2.0
    """Cache decoded images in memory if they fit into so many GiB."""

    def __post_init__(self) -> None:
        check_names("objectives", self.objectives, OBJECTIVES)
        check_names("compile", self.compile, ("off", "on"))
        check_names("baseline", self.baseline, BASELINES)
