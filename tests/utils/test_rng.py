"""Randomness as a pure function: the known generator's bits, whatever the shape they are asked for in."""

import pytest
import torch

from mapet.utils.rng import randint, random_bits, uniform

MASK = (1 << 64) - 1


def splitmix(*keys: int) -> int:
    """SplitMix64's step and finaliser in unbounded integers, one step per key; as a signed 64-bit number."""
    state = 0
    for key in keys:
        state = (state + 0x9E3779B97F4A7C15 + key) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return state - (1 << 64) if state >> 63 else state


def test_the_reference_is_the_published_generator() -> None:
    assert splitmix(0) & MASK == 0xE220A8397B1DCDAF  # first output of SplitMix64 seeded with 0


@pytest.mark.parametrize("keys", [(0,), (1, 2), (2, 1), (-1, 5), (2**63 - 1, -(2**63), 3), (7, 7, 7, 7)])
def test_the_bits_are_those_of_unbounded_integers(keys: tuple[int, ...]) -> None:
    assert random_bits(*keys).item() == splitmix(*keys)
    assert uniform(*keys).item() == ((splitmix(*keys) & MASK) >> 11) / 2**53


@pytest.mark.parametrize("number", [0, 5, -1, 2**63 - 1, -(2**63)])
def test_an_integer_and_a_tensor_are_the_same_key(number: int) -> None:
    for first, last in ((number, 7), (7, number), (number, number)):
        expected = splitmix(first, 3, last, last)
        for tensors in range(16):
            keys = [torch.tensor(k) if tensors >> i & 1 else k for i, k in enumerate((first, 3, last, last))]
            assert random_bits(*keys).item() == expected
    assert random_bits(1, torch.tensor([number], dtype=torch.int64)).shape == (1,)


def test_short_integers_do_not_overflow() -> None:
    assert random_bits(torch.tensor(3, dtype=torch.int16), 4).item() == splitmix(3, 4)


def test_keys_broadcast_and_any_split_gives_the_same() -> None:
    rows, columns = torch.arange(50)[:, None], torch.arange(30)
    whole = random_bits(3, rows, columns)
    assert whole.shape == (50, 30)
    assert torch.equal(whole, torch.cat([random_bits(3, rows[:7], columns), random_bits(3, rows[7:], columns)]))
    assert whole[41, 11].item() == splitmix(3, 41, 11)
    assert len(whole.unique()) == whole.numel()


def test_fractions_are_uniform_and_neighbours_independent() -> None:
    cells = (uniform(1, torch.arange(200_000)) * 16).long()
    pairs = torch.bincount(cells[:-1] * 16 + cells[1:], minlength=256).double()
    expected = pairs.sum() / 256
    assert ((pairs - expected) ** 2 / expected).sum() < 345  # 255 degrees of freedom: exceeded once in 10,000
    assert uniform(1, torch.arange(200_000)).max() < 1


@pytest.mark.parametrize("bound", [1, 3, 10, 1000, 2**31])
def test_below_stays_in_range(bound: int) -> None:
    draws = randint(bound, 5, torch.arange(20_000))
    assert draws.dtype == torch.int64
    assert draws.min() >= 0
    assert draws.max() < bound


def test_below_reaches_every_value_evenly() -> None:
    counts = torch.bincount(randint(10, 2, torch.arange(100_000)), minlength=10).double()
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 34  # 9 degrees of freedom: exceeded once in 10,000


def test_each_element_may_have_its_own_bound() -> None:
    bounds = torch.arange(1, 1000)
    draws = randint(bounds, 1, torch.arange(1, 1000))
    assert (draws < bounds).all()
    assert draws.float().mean() > 200
