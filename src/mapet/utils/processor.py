"""What this machine's processor is."""

from contextlib import suppress
from functools import cache
from pathlib import Path

import torch


def multiplies_bfloat16() -> bool:
    """Whether it has instructions for products of bfloat16: AMX or AVX512-BF16."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


@cache
def has_fast_mkl() -> bool:
    """Whether torch's product is faster than NumPy's: by 10 % on Intel's CPUs, where it is MKL's; slower on AMD's."""
    with suppress(OSError):
        has_mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        return has_mkl and "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    return False


def has_slow_mkl() -> bool:
    """Whether torch multiplies float32 by MKL where oneDNN, which it has too, is faster: not on Intel's CPUs."""
    both: bool = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return both and not has_fast_mkl()
