"""Stateless random numbers: every draw is a pure function of integer seeds.

A caller (orders, augmentation, samples) passes seeds such as (seed, salt, epoch, sample index), where a constant salt
separates its draws from those of other callers. It gets the same bits on a CPU or GPU, for any batch split, and after a
resume.

A seed that is a Python integer never becomes a tensor: on a GPU that would be a copy that the process waits for.
"""

from typing import Any, TypeVar

import torch
from torch import Tensor

Bits = TypeVar("Bits", int, Tensor)

GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, as a signed 64-bit integer
FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
SECOND = -7723592293110705685  # 0x94D049BB133111EB
NARROW = frozenset({"mps"})  # device types without full 64-bit arithmetic


def random_bits(*seeds: int | Tensor) -> Tensor:
    """Uniform random bits: int64 of the shape to which ``seeds`` broadcast.

    Each seed is absorbed by one round of SplitMix64 (Steele et al. 2014), so (1, 2) and (2, 1) differ. The result is on
    the device of the tensors among the seeds, or on the CPU.
    """
    state: Any = 0
    for seed in seeds:
        state = _mix(_signed(state + GOLDEN) + (seed.long() if isinstance(seed, Tensor) else seed))
    return state if isinstance(state, Tensor) else torch.tensor(_signed(state))


def uniform(*seeds: int | Tensor) -> Tensor:
    """Uniform float64 in [0, 1) with 53 random bits."""
    return _shift(random_bits(*seeds), 11).double() * 2.0**-53


def randint(bound: int | Tensor, *seeds: int | Tensor) -> Tensor:
    """Uniform int64 in [0, bound); the bias is below bound / 2**32."""
    return (random_uint32(*seeds) * bound) >> 32


def random_uint32(*seeds: int | Tensor) -> Tensor:
    """The upper half of ``random_bits``: int64 in [0, 2**32)."""
    return _shift(random_bits(*seeds), 32)


def exact(device: torch.device | str) -> torch.device:
    """The device for 64-bit arithmetic on data of ``device``: the same, or the CPU for MPS.

    MPS has no float64, and not all int64 operations.
    """
    device = torch.device(device)
    return torch.device("cpu") if device.type in NARROW else device


def _mix(bits: Bits) -> Bits:
    """One round of SplitMix64. A Python integer may grow beyond 64 bits; its last 64 bits are correct."""
    bits = (bits ^ _shift(bits, 30)) * FIRST
    bits = (bits ^ _shift(bits, 27)) * SECOND
    return bits ^ _shift(bits, 31)


def _shift(bits: Bits, count: int) -> Bits:
    """Logical right shift; torch's own is arithmetic."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _signed(bits: Bits) -> Bits:
    """The last 64 bits of a Python integer in two's complement; a tensor is returned as it is."""
    return (bits + 2**63) % 2**64 - 2**63 if isinstance(bits, int) else bits
