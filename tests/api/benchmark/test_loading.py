"""How many workers the dense reference's loader has: its masks go through shared memory, which may be small."""

from types import SimpleNamespace

import pytest
import torch

from mapet.api.benchmark import loading
from mapet.api.benchmark.case import Case
from mapet.api.benchmark.loading import AHEAD, Loading, Masked, fitting, handed_over, pretrain_batches, workers_for
from mapet.config.recipe import Model, Optimization, Recipe

SHAPE = Model(name="custom", embed_dim=24, depth=1, num_heads=3, image_size=16, patch_size=4)
CASE = Case(Recipe(model=SHAPE, optimization=Optimization(batch_size=5)), against=("dense",), vocabulary=13)
GPU = torch.device("cuda")


@pytest.mark.parametrize(
    ("workers", "free", "fits"),
    [(8, 1700, 8), (8, 1699, 7), (8, 500, 2), (8, 300, 1), (8, 10, 1), (8, 0, 1), (1, 10**6, 1), (0, 10**6, 0)],
)
def test_what_is_decoded_ahead_and_the_batch_in_hand_fit(workers, free, fits):
    assert fitting(workers, 100, free) == fits
    assert fits <= 1 or (AHEAD * fits + 1) * 100 <= free


def test_the_size_of_a_batch_with_masks(images):
    stream = pretrain_batches(CASE, Loading(str(images), workers=0, cache_gib=0), 1, torch.device("cpu"))
    pixels, _, _, content, query = Masked(stream.shuffled, CASE)[0, 0]
    assert handed_over(CASE) == 5 * (pixels.nbytes + content.nbytes + query.nbytes)


def test_only_the_reference_is_bounded(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "SHARED", tmp_path)
    monkeypatch.setattr(loading, "disk_usage", lambda folder: SimpleNamespace(free=5 * handed_over(CASE)))
    asked = Loading("images", workers=6)
    assert workers_for("dense", CASE, asked, GPU) == 2
    assert workers_for("ours", CASE, asked, GPU) == 6
    monkeypatch.setattr(loading, "SHARED", tmp_path / "absent")
    assert workers_for("dense", CASE, asked, GPU) == 6
