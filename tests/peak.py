"""The memory of this process, as Linux counts it."""

import gc

import pytest

from mapet.engine.memory import give_back


def reset_peak() -> int:
    """Bytes in use, from which the peak is counted anew; skips the test where the system cannot do that."""
    gc.collect()
    give_back()
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pytest.skip("this system does not tell a peak of memory anew")
    return memory("VmRSS")


def memory(name: str) -> int:
    """Bytes in use, ``VmRSS``, or at the peak, ``VmHWM``."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{name}:"))
