"""How a batch is divided among devices and parts, and what is said of it."""

import pytest

from mapet.api.training import batch_line
from mapet.config.recipe import Machine


@pytest.mark.parametrize(
    ("batch", "machine", "said"),
    [
        (32, Machine(), "32, lr 1.00e-03"),
        (32, Machine(micro_batch=32), "32, lr 1.00e-03"),
        (2048, Machine(devices=8), "2048 = 8 devices × 256, lr 1.00e-03"),
        (2048, Machine(devices=8, micro_batch=64), "2048 = 8 devices × 4 parts × 64, lr 1.00e-03"),
        (2048, Machine(devices=8, num_nodes=2, micro_batch=64), "2048 = 16 devices × 2 parts × 64, lr 1.00e-03"),
        (10, Machine(micro_batch=4), "10 = 3 parts × at most 4, lr 1.00e-03"),
        (8, Machine(micro_batch=100), "8, lr 1.00e-03"),
    ],
)
def test_the_global_batch_stays_and_its_parts_are_derived(batch, machine, said):
    assert batch_line(batch, 1e-3, machine) == said


@pytest.mark.parametrize("devices", [1, 2, 3, 8])
@pytest.mark.parametrize("micro", [1, 2, 3, 5, 7, 64])
def test_parts_are_the_fewest_that_are_small_enough(devices, micro):
    share = 48 // devices
    parts = Machine(devices=devices, micro_batch=micro).parts(48)
    sizes = [len(range(share)[k::parts]) for k in range(parts)]
    assert sum(sizes) == share
    assert max(sizes) <= micro
    assert parts == 1 or (parts - 1) * micro < share
