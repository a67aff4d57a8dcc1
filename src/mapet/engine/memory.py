"""Activation checkpointing, and how glibc's allocator keeps freed memory."""

import ctypes
import re
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

BLOCK = re.compile(r"blocks\.\d+$")  # timm's name
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's <malloc.h>


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
