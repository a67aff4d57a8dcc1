"""Orders: permutations, pure functions of their arguments, with the documented distributions."""

import hashlib
import itertools
import math
import random

import pytest
import torch
from torch.nn import functional as F

from mapet.method.order import STRATEGIES, _covered, blockwise, raster, uniform

GRIDS = [
    ((14, 14), 75),
    ((14, 14), 147),
    ((8, 8), 48),
    ((3, 5), 7),
    ((5, 3), 15),
    ((2, 2), 1),
    ((1, 6), 4),
    ((1, 1), 1),
]
RANDOM = ["uniform", "blockwise"]


def neighbours(order, grid, num_masked):
    """(B,) number of adjacent pairs of masked patches."""
    mask = torch.zeros(len(order), order.shape[1], dtype=torch.long).scatter_(1, order[:, -num_masked:], 1)
    mask = mask[:, 1:].view(-1, *grid)
    return (mask[:, 1:] & mask[:, :-1]).sum((1, 2)) + (mask[:, :, 1:] & mask[:, :, :-1]).sum((1, 2))


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES.keys())
@pytest.mark.parametrize(("grid", "num_masked"), GRIDS)
def test_permutations_with_cls_first(strategy, grid, num_masked):
    order = strategy(grid, num_masked, 1, 2, torch.arange(20))
    length = grid[0] * grid[1]
    assert order.dtype == torch.int64
    assert order.shape == (20, 1 + length)
    assert (order[:, 0] == 0).all()
    assert torch.equal(order.sort(dim=1).values, torch.arange(1 + length).expand(20, -1))


@pytest.mark.parametrize("name", RANDOM)
def test_pure_function_of_seed_epoch_and_index(name):
    index = torch.tensor([7, 0, 123_456_789_012, 3, 7, 41])
    together = STRATEGIES[name]((6, 5), 20, 3, 4, index)
    torch.rand(5)
    apart = [STRATEGIES[name]((6, 5), 20, 3, 4, index[k : k + 1]) for k in range(len(index))]
    assert torch.equal(together, torch.cat(apart))
    assert torch.equal(together, torch.cat([STRATEGIES[name]((6, 5), 20, 3, 4, part) for part in index.split(4)]))
    assert torch.equal(together[0], together[4])
    assert torch.equal(together.flip(0), STRATEGIES[name]((6, 5), 20, 3, 4, index.flip(0)))


@pytest.mark.parametrize("name", RANDOM)
def test_seeds_epochs_and_images_differ(name):
    index = torch.arange(50)
    orders = torch.cat(
        [STRATEGIES[name]((6, 5), 20, *seed_and_epoch, index) for seed_and_epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]]
    )
    assert len(orders.unique(dim=0)) == 200


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_bit_identical_on_cuda(name):
    index = torch.arange(100)
    on_cpu = STRATEGIES[name]((14, 14), 75, 5, 6, index)
    assert torch.equal(on_cpu, STRATEGIES[name]((14, 14), 75, 5, 6, index.cuda()).cpu())


def test_blockwise_does_not_depend_on_attempts_drawn_at_once(monkeypatch):
    index, expected = torch.arange(40), blockwise((14, 14), 147, 0, 0, torch.arange(40))
    for count in (1, 7, 500):
        monkeypatch.setattr("mapet.method.order.ATTEMPTS_AT_ONCE", count)
        assert torch.equal(blockwise((14, 14), 147, 0, 0, index), expected)


def test_orders_are_those_of_earlier_versions():
    """So that runs of earlier versions can be resumed; "blockwise" allowed bars across the whole grid in 0.1."""
    index = torch.tensor([1_000_000])
    assert uniform((3, 4), 8, 7, 3, index).tolist() == [[0, 4, 5, 7, 6, 3, 12, 8, 1, 11, 2, 10, 9]]
    assert blockwise((5, 5), 18, 7, 3, index).tolist() == [
        [0, 25, 6, 11, 24, 22, 21, 23, 17, 10, 3, 14, 8, 9, 16, 15, 13, 2, 20, 1, 5, 4, 19, 18, 12, 7]
    ]


def chi_square_bound(freedom):
    """About 4.5 standard deviations above the mean, by the normal approximation."""
    return freedom + 4.5 * math.sqrt(2 * freedom)


def test_uniform_puts_every_patch_at_every_index():
    draws, length = 8000, 12
    order = uniform((3, 4), 9, 11, 0, torch.arange(draws))[:, 1:] - 1
    counts = torch.stack([(order == patch).sum(0) for patch in range(length)]).double()
    expected = draws / length
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    freedom = (length - 1) ** 2
    assert 2 * freedom - chi_square_bound(freedom) < statistic < chi_square_bound(freedom)


def test_uniform_draws_all_24_permutations_of_four():
    draws = 6000
    order = uniform((2, 2), 3, 5, 0, torch.arange(draws))
    _, counts = order.unique(dim=0, return_counts=True)
    expected = draws / 24
    assert len(counts) == 24
    assert ((counts - expected) ** 2 / expected).sum() < chi_square_bound(23)


def test_raster_is_the_identity():
    assert torch.equal(raster((3, 5), 4, 1, 2, torch.arange(3)), torch.arange(16).expand(3, -1))


@pytest.mark.parametrize(("grid", "num_masked"), [((14, 14), 75), ((8, 8), 32), ((6, 9), 20)])
def test_blockwise_is_more_contiguous_than_uniform(grid, num_masked):
    index = torch.arange(60)
    blocks = neighbours(blockwise(grid, num_masked, 0, 0, index), grid, num_masked)
    single = neighbours(uniform(grid, num_masked, 0, 0, index), grid, num_masked)
    assert blocks.double().mean() > 1.3 * single.double().mean()


def test_blockwise_reveals_masked_patches_in_random_sequence():
    """In a random sequence, successive patches are as far apart as any two: squared distance = 2 × variance."""
    order = blockwise((14, 14), 75, 0, 0, torch.arange(300))[:, -75:] - 1
    rows, columns = (order // 14).double(), (order % 14).double()
    for coordinate in (rows, columns):
        steps = (coordinate[:, 1:] - coordinate[:, :-1]).square().mean(1)
        pairs = 2 * coordinate.var(dim=1)
        error = (steps - pairs).std() / math.sqrt(len(order))
        assert abs((steps - pairs).mean()) < 4 * error


def test_blockwise_reveals_single_patches_no_earlier_than_blocks():
    """Patches outside rectangles have few masked neighbours; the mean number is the same throughout the sequence."""
    grid, num_masked, draws = (14, 14), 75, 600
    order = blockwise(grid, num_masked, 1, 0, torch.arange(draws))[:, -num_masked:] - 1
    mask = torch.zeros(draws, 196).scatter_(1, order, 1).view(draws, 1, *grid)
    cross = torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]])[None, None]
    adjacent = F.conv2d(mask, cross, padding=1).flatten(1).gather(1, order)
    excess = adjacent[:, :5].mean(1) - adjacent.mean(1)
    assert adjacent.std() > 0.5
    assert abs(excess.mean()) < 4 * excess.std() / math.sqrt(draws)


def beit_mask(rng, side=14, num_masked=75, smallest=16, attempts=10):
    """BEiT's algorithm 1, rectangle by rectangle; random single patches fill the rest."""
    mask = [[False] * side for _ in range(side)]
    left = num_masked
    while left:
        for _ in range(attempts):
            area = rng.uniform(smallest, left)
            aspect = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (height < side and width < side):
                continue
            top, start = rng.randint(0, side - height), rng.randint(0, side - width)
            block = [(row, column) for row in range(top, top + height) for column in range(start, start + width)]
            new = [(row, column) for row, column in block if not mask[row][column]]
            if 0 < len(new) <= left:
                for row, column in new:
                    mask[row][column] = True
                left -= len(new)
                break
        else:
            break
    free = [(row, column) for row in range(side) for column in range(side) if not mask[row][column]]
    for row, column in rng.sample(free, left):
        mask[row][column] = True
    return mask


@pytest.mark.parametrize(("side", "num_masked"), [(8, 24), (8, 32), (14, 75)])
def test_bars_across_the_whole_grid_are_as_frequent_as_in_beit(side, num_masked):
    """No rectangle is as high or wide as the grid; several may still add up to a bar."""
    draws, rng = 1500, random.Random(0)
    order = blockwise((side, side), num_masked, 0, 0, torch.arange(draws))
    ours = torch.zeros(draws, 1 + side**2, dtype=torch.bool).scatter_(1, order[:, -num_masked:], True)[:, 1:]
    theirs = torch.tensor([beit_mask(rng, side, num_masked) for _ in range(draws)])
    for axis in (1, 2):
        one, other = (mask.view(-1, side, side).all(axis).any(1).double() for mask in (ours, theirs))
        assert other.mean() > 0.01
        assert abs(one.mean() - other.mean()) < 4 * ((one.var() + other.var()) / draws).sqrt()


def test_blockwise_has_the_distribution_of_beit():
    draws, grid, num_masked = 500, (14, 14), 75
    rng = random.Random(0)
    masks = torch.tensor([beit_mask(rng) for _ in range(draws)])
    assert (masks.sum((1, 2)) == num_masked).all()
    theirs_order = F.pad(1 + masks.flatten(1).long().argsort(dim=1, stable=True), (1, 0))
    ours_order = blockwise(grid, num_masked, 0, 0, torch.arange(2 * draws))
    ours, theirs = (neighbours(order, grid, num_masked).double() for order in (ours_order, theirs_order))
    error = (ours.var() / len(ours) + theirs.var() / len(theirs)).sqrt()
    assert abs(ours.mean() - theirs.mean()) < 4 * error
    assert 0.8 < ours.std() / theirs.std() < 1.25
    middle = torch.zeros(grid, dtype=torch.bool)
    middle[4:10, 4:10] = True
    ours, theirs = (
        middle.flatten()[order[:, -num_masked:] - 1].sum(1).double() for order in (ours_order, theirs_order)
    )
    error = (ours.var() / len(ours) + theirs.var() / len(theirs)).sqrt()
    assert abs(ours.mean() - theirs.mean()) < 4 * error


def test_a_rectangle_that_covers_nothing_new_counts_as_rejected():
    """Draws that repeat: one of 2 × 7 patches, then 1 × 4 of the same, until the attempts are used up."""
    covered = _covered((8, 8), 20, itertools.repeat((0, 0, 0, 0)))
    assert covered == 0b1111111_01111111


@pytest.mark.parametrize(
    ("name", "grid", "num_masked", "digest"),
    [
        ("uniform", (14, 14), 147, "0a28d802e7020815"),
        ("uniform", (8, 8), 48, "b8bc114fd935dd43"),
        ("blockwise", (14, 14), 147, "60a4e229460654af"),
        ("blockwise", (8, 8), 48, "9db6e6a0fe828420"),
        ("blockwise", (6, 4), 20, "407d8d0aaa3344c8"),
        ("blockwise", (3, 4), 8, "ff05612c66a0fe94"),
    ],
)
def test_many_orders_are_those_of_earlier_versions(name, grid, num_masked, digest):
    orders = STRATEGIES[name](grid, num_masked, 7, 3, torch.arange(300))
    assert hashlib.sha256(orders.numpy().astype("<i8").tobytes()).hexdigest()[:16] == digest
