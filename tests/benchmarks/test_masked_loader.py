"""The data loader of the dense reference: its masks go through shared memory, which may be small."""

from importlib import import_module
from types import SimpleNamespace

import pytest
import torch

from mapet.api.benchmark import baselines
from mapet.api.benchmark.case import Case
from mapet.api.benchmark.loading import AHEAD, Loading, pretrain_batches
from mapet.config.recipe import Model, Optimization, Recipe

baselines.find()
masked_loader = import_module("baselines.masked_loader")
SHAPE = Model(name="custom", embed_dim=24, depth=1, num_heads=3, image_size=16, patch_size=4)
CASE = Case(Recipe(model=SHAPE, optimization=Optimization(batch_size=5)), baseline=("dense",), vocabulary=13)


@pytest.mark.parametrize(
    ("workers", "free", "fits"),
    [(8, 1700, 8), (8, 1699, 7), (8, 500, 2), (8, 300, 1), (8, 10, 1), (8, 0, 1), (1, 10**6, 1), (0, 10**6, 0)],
)
def test_prefetched_batches_and_the_current_one_fit(workers, free, fits):
    assert masked_loader.fitting(workers, 100, free) == fits
    assert fits <= 1 or (AHEAD * fits + 1) * 100 <= free


def test_the_size_of_a_batch_with_masks(images):
    stream = pretrain_batches(CASE, Loading(str(images), workers=0, cache_gib=0), 1, torch.device("cpu"))
    pixels, _, _, content, query = masked_loader.Masked(stream.shuffled, CASE)[0, 0]
    assert masked_loader.batch_bytes(CASE) == 5 * (pixels.nbytes + content.nbytes + query.nbytes)


def test_shared_memory_limits_the_workers(monkeypatch, tmp_path):
    monkeypatch.setattr(masked_loader, "SHARED", tmp_path)
    monkeypatch.setattr(
        masked_loader, "disk_usage", lambda folder: SimpleNamespace(free=5 * masked_loader.batch_bytes(CASE))
    )
    assert masked_loader.limited_workers(6, CASE) == 2
    monkeypatch.setattr(masked_loader, "SHARED", tmp_path / "absent")
    assert masked_loader.limited_workers(6, CASE) == 6
