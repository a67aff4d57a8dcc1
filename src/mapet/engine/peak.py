"""Peak memory of a piece of work: of the accelerator where there is one, else of this process."""

import resource
from pathlib import Path

import torch

from mapet.engine.memory import give_back

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak(device: torch.device) -> None:
    """Measure from here on; memory that is kept and not in use is given back.

    Where the system cannot forget a process's peak, it is that since its start.
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
    """Bytes that torch had allocated on a GPU at most, or that were resident of this process at most."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if STATUS.is_file():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
