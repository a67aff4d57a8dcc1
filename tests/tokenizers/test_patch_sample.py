import pytest
import torch
from torch import Tensor

from fitted import together
from mapet.tokenizers import patch_sample as module
from mapet.tokenizers.patch_sample import PATCH, PatchSample
from mapet.utils.errors import MapetError
from mapet.utils.process_group import SINGLE_PROCESS, ProcessGroup
from mapet.utils.rng import random_bits


def features(images: int, patches: int = 6) -> Tensor:
    """Every patch's feature is its own number: (B, L, 1)."""
    return torch.arange(images * patches).view(images, patches, 1).float()


def sample(
    order: Tensor,
    batch: int,
    count: int,
    seed: int = 0,
    images: int = 200,
    process_group: ProcessGroup = SINGLE_PROCESS,
):
    """The pool of a sample of the ``images``, of which those in ``order`` are shown."""
    pool, everything = PatchSample(torch.arange(images), 6, 1, count, seed, process_group), features(images)
    own = set(process_group.share(torch.arange(images)).tolist())
    for index in order.split(batch):
        index = index[torch.tensor([place in own for place in index.tolist()], dtype=torch.bool)]
        pool.add(everything[index], index)
    return pool.pool()


@pytest.mark.parametrize("count", [1, 10, 250, 1199])
def test_does_not_depend_on_batches_or_order(count: int) -> None:
    straight = torch.arange(200)
    wanted = sample(straight, 200, count).vectors
    assert wanted.unique().numel() == count
    mixed = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    for order, batch in ((straight, 1), (straight, 7), (straight.flip(0), 64), (mixed, 13)):
        assert torch.equal(sample(order, batch, count).vectors, wanted)


@pytest.mark.parametrize("block", [6, 90, 1 << 20])
def test_is_the_patches_of_the_smallest_keys(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    keys = random_bits(3, PATCH, torch.arange(200)[:, None], torch.arange(6)).flatten()
    assert sample(torch.arange(200), 9, 50, seed=3).vectors.flatten().tolist() == keys.argsort()[:50].tolist()


@pytest.mark.parametrize("count", [5, 300, 1200])
def test_processes_hold_the_same_vectors_as_one(count: int) -> None:
    wanted = sample(torch.arange(200), 50, count).vectors
    pools = together(3, lambda process_group: sample(torch.arange(200), 50, count, process_group=process_group))
    assert [pool.total for pool in pools] == [count] * 3
    rows = torch.cat([pool.rows for pool in pools])
    assert torch.equal(rows.sort().values, torch.arange(count))
    assert torch.equal(torch.cat([pool.vectors for pool in pools])[rows.argsort()], wanted)


def test_pictures_without_a_chosen_patch_need_not_be_shown() -> None:
    chosen = PatchSample(torch.arange(200), 6, 1, 20, 0).indices
    assert 10 <= len(chosen) <= 20
    assert torch.equal(sample(chosen, 3, 20).vectors, sample(torch.arange(200), 9, 20).vectors)


def test_what_is_never_shown_is_left_out() -> None:
    shown = torch.arange(0, 200, 3)
    everything = sample(torch.arange(200), 9, 300).vectors.flatten()
    wanted = everything[(everything // 6) % 3 == 0]
    pool = sample(shown, 9, 300)
    assert torch.equal(pool.vectors.flatten(), wanted)
    assert torch.equal(pool.rows, torch.arange(len(wanted)))


def test_keeps_everything_that_fits() -> None:
    for count in (1200, 5000):
        vectors = sample(torch.arange(200), 9, count).vectors
        assert torch.equal(vectors.flatten().sort().values, torch.arange(1200.0))


def test_is_uniform_over_patches_and_changes_with_the_seed() -> None:
    counts = torch.zeros(60)
    for seed in range(400):
        counts[sample(torch.arange(10), 4, 15, seed, images=10).vectors.flatten().long()] += 1
    chi_squared = float(((counts - 100) ** 2 / (100 * (1 - 15 / 60))).sum())
    assert counts.sum() == 15 * 400
    assert 25 < chi_squared < 110  # 59 degrees of freedom: both tails below 1e-4


def test_features_that_are_no_numbers_are_refused_at_once() -> None:
    pool = PatchSample(torch.arange(4), 6, 1, 24, 0)
    broken = features(4)
    broken[2, 3] = torch.nan
    pool.add(broken[:2], torch.arange(2))
    with pytest.raises(MapetError, match="NaN or Inf"):
        pool.add(broken[2:], torch.arange(2, 4))


def test_more_than_the_memory_is_explained() -> None:
    with pytest.raises(MapetError, match="GiB of memory: use fewer samples"):
        PatchSample(torch.arange(200), 6, 10**14, 1200, 0)
