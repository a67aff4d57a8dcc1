"""Memory and time: activations computed twice instead of kept, and freed memory kept instead of given back."""

import ctypes
import re
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

BLOCK = re.compile(r"blocks\.\d+$")  # timm's name for them
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's <malloc.h>


def recompute(module: nn.Module) -> None:
    """Let every block of ``module`` keep nothing but what it was given (Chen et al., arXiv 1604.06174).

    What it held for its backward pass is computed again there; results stay as they are, bit by bit. Blocks are found
    by timm's name, and must draw no chance of their own (stochastic depth is given to them).
    """
    for name, block in module.named_modules():
        if BLOCK.search(name):
            again = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
            setattr(block, "forward", again)  # noqa: B010


def keep_freed() -> bool:
    """Let this process keep freed memory for the next step, where glibc allocates; whether it does.

    Else every large tensor of every step is fresh memory, which the system fills with zeros page by page.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1))


def give_back() -> None:
    """Return to the system what is kept and not in use, where glibc allocates."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
