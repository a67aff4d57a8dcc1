"""A training that is killed, damaged and starved ends bit-equal: the short form of benchmarks/soak.py."""

import importlib.util
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.fixture
def soak():
    spec = importlib.util.spec_from_file_location("soak", FILE)
    module = sys.modules["soak"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["soak"]


def test_the_end_is_that_of_an_undisturbed_run(soak, tmp_path):
    """Every image is seen once in each epoch, whatever happens to one process and its worker."""
    faults = ("group", "write", "worker", "full", "image", "checkpoint")
    done = soak.soak(tmp_path, 3600, processes=1, seed=4, faults=faults, starts=6)
    assert set(done) == set(faults)


def test_an_image_twice_or_missed_is_noticed(soak, tmp_path):
    lines = []
    for step in range(1, soak.STEPS + 1):
        seed = int(soak.random_bits(soak.SEED, soak.SALT, step, 0)) % 2**64
        start = (step - 1) * soak.BATCH
        lines += [
            f"{seed} image{(start + i) % soak.IMAGES} tokens{(start + i) % soak.IMAGES}" for i in range(soak.BATCH)
        ]
    whole, other = tmp_path / "whole", tmp_path / "other"
    whole.write_text("\n".join(lines))
    soak.counted(whole, 1, whole)
    other.write_text("\n".join(lines + lines[8:16]))
    soak.counted(other, 1, whole)  # a step repeated after a kill
    for wrong in (lines[1:], [lines[0].replace("image0", "image9"), *lines[1:]], [*lines, lines[0]]):
        other.write_text("\n".join(wrong))
        with pytest.raises(soak.Failed):
            soak.counted(other, 1, whole)
