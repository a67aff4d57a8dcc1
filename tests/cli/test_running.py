"""How a batch is divided among devices and parts, and what is said of it."""

import pytest

from mapet.api.batch_size import batch_line
from mapet.config.recipe import Runtime


@pytest.mark.parametrize(
    ("batch", "runtime", "said"),
    [
        (32, Runtime(), "32, lr 1.00e-03"),
        (32, Runtime(micro_batch_size=32), "32, lr 1.00e-03"),
        (2048, Runtime(devices=8), "2048 = 8 devices × 256, lr 1.00e-03"),
        (2048, Runtime(devices=8, micro_batch_size=64), "2048 = 8 devices × 4 parts × 64, lr 1.00e-03"),
        (2048, Runtime(devices=8, num_nodes=2, micro_batch_size=64), "2048 = 16 devices × 2 parts × 64, lr 1.00e-03"),
        (10, Runtime(micro_batch_size=4), "10 = 3 parts × at most 4, lr 1.00e-03"),
        (8, Runtime(micro_batch_size=100), "8, lr 1.00e-03"),
    ],
)
def test_the_global_batch_stays_and_its_parts_are_derived(batch, runtime, said):
    assert batch_line(batch, 1e-3, runtime) == said


@pytest.mark.parametrize("devices", [1, 2, 3, 8])
@pytest.mark.parametrize("micro", [1, 2, 3, 5, 7, 64])
def test_parts_are_the_fewest_that_are_small_enough(devices, micro):
    share = 48 // devices
    parts = Runtime(devices=devices, micro_batch_size=micro).parts(48)
    sizes = [len(range(share)[k::parts]) for k in range(parts)]
    assert sum(sizes) == share
    assert max(sizes) <= micro
    assert parts == 1 or (parts - 1) * micro < share
