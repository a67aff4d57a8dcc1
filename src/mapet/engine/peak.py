"""Peak memory: of the GPU, or of this process on a CPU."""

import resource
from pathlib import Path

import torch

from mapet.engine.memory import give_back

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak(device: torch.device) -> None:
    """Start a new measurement, after unused memory is returned to the system.

    Where the system cannot reset the peak of a process, ``peak`` stays the one since its start.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    give_back()
    try:
        CLEAR.write_text("5")
    except OSError:
        return


def peak(device: torch.device) -> int:
    """Peak in bytes: memory that torch allocated on a GPU, or resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if STATUS.is_file():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
