import pytest
import torch
from torch import Tensor

from mapet.tokenizers.sample import PatchSample


def features(pictures: int, patches: int = 6) -> Tensor:
    """Every patch's feature is its own number: (B, L, 1)."""
    return torch.arange(pictures * patches).view(pictures, patches, 1).float()


def sample(order: Tensor, batch: int, count: int, seed: int = 0, pictures: int = 200) -> Tensor:
    pool, all_features = PatchSample(count, 1, seed), features(pictures)
    for index in order.split(batch):
        pool.add(all_features[index], index)
    return pool.vectors()


@pytest.mark.parametrize("count", [1, 10, 250, 1199])
def test_does_not_depend_on_batches_or_order(count: int) -> None:
    straight = torch.arange(200)
    wanted = sample(straight, 200, count)
    assert wanted.unique().numel() == count
    mixed = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    for order, batch in ((straight, 1), (straight, 7), (straight.flip(0), 64), (mixed, 13)):
        assert torch.equal(sample(order, batch, count), wanted)


def test_keeps_everything_that_fits() -> None:
    for count in (1200, 5000):
        assert torch.equal(sample(torch.arange(200), 9, count).flatten().sort().values, torch.arange(1200.0))


def test_is_uniform_over_patches_and_changes_with_the_seed() -> None:
    counts = torch.zeros(60)
    for seed in range(400):
        counts[sample(torch.arange(10), 4, 15, seed, pictures=10).flatten().long()] += 1
    chi_squared = float(((counts - 100) ** 2 / (100 * (1 - 15 / 60))).sum())
    assert counts.sum() == 15 * 400
    assert 25 < chi_squared < 110  # 59 degrees of freedom: both tails below 1e-4


def test_holds_a_bounded_number_of_vectors() -> None:
    pool = PatchSample(100, 1, 0)
    for index in torch.arange(500).split(50):
        pool.add(features(500)[index], index)
        assert pool.filled <= len(pool._vectors) == 125
    assert len(pool.vectors()) == 100
