"""Settings of ``mapet bench``."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from mapet.config.objectives import BuiltIn
from mapet.config.recipe import ModelName
from mapet.config.setting import Count, Listed, Rate, settings, several
from mapet.config.training import Precision

BASELINES = {"dense": ("mapet",), "transformers": ("mim", "mae")}  # with the objectives that each implements


def _on_off(value: Any) -> tuple[Any, ...]:
    """(True, "off") → ("on", "off")."""
    return tuple({True: "on", False: "off"}.get(one, one) for one in several(value))


@settings
class BenchmarkSettings:
    """What is measured and how; lists may also be one value, or one string with commas."""

    objectives: Listed[BuiltIn] = ()
    """Objectives, separated by commas; none: the recipe's."""
    models: Listed[ModelName] = ()
    """Models, separated by commas; none: the recipe's."""
    batch_sizes: Listed[Count] = ()
    """Images per step, separated by commas; none: 8 on a CPU, 64 on a GPU."""
    precisions: Listed[Precision] = ()
    """float32, bfloat16, or both; none: float32 on a CPU, bfloat16 on a GPU."""
    compile: Annotated[Listed[Literal["off", "on"]], Field(min_length=1), BeforeValidator(_on_off)] = ("off",)
    """Use torch.compile: off, on, or off,on for both."""
    micro_batch_size: Count | None = None
    """Images per micro-batch, to save memory; None: the whole batch."""
    rounds: Count = 5
    """Timings of each implementation; the median is reported."""
    baseline: Listed[Literal["dense", "transformers"]] = ()
    """Also measure dense (mapet as published), transformers (mim and mae, version 5), or both; needs a clone of the
    repository."""
    scaling: Listed[Count] = ()
    """Also measure with these numbers of processes sharing the batch, for instance 1,2,4."""
    skip_memory: bool = False
    """Do not measure peak memory, which on a CPU takes a separate process per implementation."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """auto, cpu or cuda."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that decode images; None: up to 8 with a GPU (4 with mps), none on a CPU."""
    cache_gib: Rate = 2.0
    """Cache decoded images in memory if they fit into so many GiB."""
