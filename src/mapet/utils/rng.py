"""Randomness without state: every draw is a pure function of its integer keys.

Whoever needs chance (orders, augmentation, samples) names the keys, for instance (seed, epoch, sample index), and gets
the same bits on a CPU, on a GPU, in any batch split and after any interruption.

No key that is a Python integer becomes a tensor: on a GPU that would be a copy for which the process waits.
"""

from typing import Any, TypeVar

import torch
from torch import Tensor

Bits = TypeVar("Bits", int, Tensor)

GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, as a signed 64-bit integer
FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
SECOND = -7723592293110705685  # 0x94D049BB133111EB
NARROW = frozenset({"mps"})  # kinds of devices that lack a part of 64-bit arithmetic


def random_bits(*keys: int | Tensor) -> Tensor:
    """Mix integer keys, broadcast against one another, into uniform bits: int64 of the broadcast shape.

    Each key is absorbed by one round of SplitMix64 (Steele et al. 2014), so (1, 2) and (2, 1) differ. The result lies
    where the tensors among the keys do; without any, on the CPU.
    """
    state: Any = 0
    for key in keys:
        state = _mix(_signed(state + GOLDEN) + (key.long() if isinstance(key, Tensor) else key))
    return state if isinstance(state, Tensor) else torch.tensor(_signed(state))


def uniform(*keys: int | Tensor) -> Tensor:
    """``random_bits`` as float64 in [0, 1), exact to 53 bits on every device that has float64."""
    return _shift(random_bits(*keys), 11).double() * 2.0**-53


def randint(bound: int | Tensor, *keys: int | Tensor) -> Tensor:
    """``random_bits`` as int64 in [0, bound); the bias is below bound / 2**32."""
    return (random_uint32(*keys) * bound) >> 32


def random_uint32(*keys: int | Tensor) -> Tensor:
    """The upper half of ``random_bits``: int64 in [0, 2**32)."""
    return _shift(random_bits(*keys), 32)


def exact(device: torch.device | str) -> torch.device:
    """Where 64 bits are computed for what lies on ``device``: there, or on the CPU beside Apple's GPU, MPS.

    That has no float64, and not all operations on int64.
    """
    device = torch.device(device)
    return torch.device("cpu") if device.type in NARROW else device


def _mix(bits: Bits) -> Bits:
    """Of an integer of any length the last 64 bits are right."""
    bits = (bits ^ _shift(bits, 30)) * FIRST
    bits = (bits ^ _shift(bits, 27)) * SECOND
    return bits ^ _shift(bits, 31)


def _shift(bits: Bits, places: int) -> Bits:
    """Right shift that brings in zeros: torch's own copies the sign bit."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def _signed(bits: Bits) -> Bits:
    """The last 64 bits of an integer as torch reads them; a tensor has no others."""
    return (bits + 2**63) % 2**64 - 2**63 if isinstance(bits, int) else bits
