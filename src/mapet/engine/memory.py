"""Activation checkpointing, how glibc's allocator keeps freed memory, and how much memory there is."""

import ctypes
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")
BLOCK = re.compile(r"blocks\.\d+$")  # timm's name
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's <malloc.h>
PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
LIMITS = (  # of control groups, versions 2 and 1
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def recompute(module: nn.Module) -> None:
    """Checkpoint the activations of every block of ``module`` (Chen et al., arXiv 1604.06174).

    A block keeps its input only and recomputes the rest in the backward pass; results are bit-identical. Blocks are
    found by timm's name and must not draw random numbers (stochastic depth comes as an input).
    """
    for name, block in module.named_modules():
        if BLOCK.search(name):
            again = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
            setattr(block, "forward", again)  # noqa: B010


def keep_freed() -> bool:
    """Let glibc keep freed memory for the next step. Returns whether it does.

    Otherwise every large tensor of every step is fresh memory, which the system zeroes page by page.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1))


def give_back() -> None:
    """Return unused memory that glibc keeps to the system."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def attempt(work: Callable[[], T]) -> T | None:
    """The result of ``work``; None, with its memory freed, if the device's or the process's memory is exhausted."""
    try:
        return work()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch could not allocate: a GPU's own error, or that of a CPU under a limit."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def available(device: torch.device) -> int | None:
    """Bytes that this process can still use: free memory of a GPU, or of the machine and its control groups.

    None where the system does not tell, as macOS.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    machine = _numbers(PROC / "meminfo").get("MemAvailable:")
    bounds = [*([] if machine is None else [1024 * machine]), *_group_bounds()]
    return min(bounds, default=None)


def resident() -> int | None:
    """Bytes of memory that this process has now; None where the system does not tell."""
    kib = _numbers(PROC / "self" / "status").get("VmRSS:")
    return None if kib is None else 1024 * kib


def _group_bounds() -> Iterator[int]:
    """Limit less use of this process's control groups and all above them; files that can be dropped are not in use."""
    try:
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and "memory" not in controllers.split(","):
            continue
        root = GROUPS / "memory" if controllers else GROUPS
        for folder in {root, *(root / path.lstrip("/")).parents, root / path.lstrip("/")}:
            for limit, usage, droppable in LIMITS if folder.is_relative_to(root) else ():
                try:
                    bound, used = int((folder / limit).read_text()), int((folder / usage).read_text())
                except (OSError, ValueError):  # none, or "max"
                    continue
                yield max(0, bound - used + _numbers(folder / "memory.stat").get(droppable, 0))


def _numbers(path: Path) -> dict[str, int]:
    """The lines "name number …" of a file of the system; nothing where there is none."""
    try:
        words = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {first: int(second) for first, second, *_ in (w for w in words if len(w) > 1) if second.isdigit()}
