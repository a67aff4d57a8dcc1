"""Corruptions: pure functions of their seeds that leave the global generators alone; timm's evaluation crop."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from mapet.config.validate import CORRUPTIONS
from mapet.data import corrupt
from mapet.data.corrupt import Corrupted, require_corruptions
from mapet.data.policy import Centre, Published
from mapet.utils.errors import MapetError
from mapet.utils.view import CenterCropResize

VIEW = CenterCropResize((32, 32))
installed = pytest.mark.skipif(corrupt.find_spec("corrupt_tta") is None, reason="corrupt-tta is not installed")


def photo(seed=0, size=(50, 40)):
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def made(name, severity=3, seed=1, index=0, epoch=0):
    transform = Corrupted(seed, name, severity, Centre(0.9))(epoch, [index, 5])[0]
    return np.array(transform(photo(), VIEW))


@installed
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_depends_on_its_seeds_alone(name):
    random.seed(4)
    np.random.seed(4)  # noqa: NPY002
    torch.manual_seed(4)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    first = made(name)
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])
    np.random.seed(5)  # noqa: NPY002
    assert (made(name) == first).all()
    plain = np.array(Centre(0.9)(0, [0])[0](photo(), VIEW))
    assert first.shape == plain.shape
    assert first.dtype == np.uint8
    assert (first != plain).any()
    strengths = {made(name, severity).tobytes() for severity in range(1, 6)}
    assert len(strengths) == 5


@installed
def test_other_images_and_seeds_are_corrupted_otherwise():
    drawn = {made("impulse_noise", index=i, seed=s).tobytes() for i in range(3) for s in range(3)}
    assert len(drawn) == 9


@installed
@pytest.mark.parametrize(("severity", "share"), enumerate(corrupt.IMPULSE, 1))
def test_impulse_noise_changes_the_share_of_values_of_imagenet_c(severity, share):
    pixels = np.full((200, 200, 3), 100, np.uint8)
    found = corrupt.corrupt(pixels, "impulse_noise", severity, -7)
    assert (found != pixels).mean() == pytest.approx(share, abs=0.005)
    assert set(np.unique(found)) == {0, 100, 255} or set(np.unique(found)) == {0, 99, 255}


def test_without_the_package_one_line_names_it(monkeypatch):
    monkeypatch.setattr(corrupt, "find_spec", lambda name: None)
    with pytest.raises(MapetError, match=r"mapet\[robustness\]"):
        require_corruptions()


@pytest.mark.parametrize("size", [(50, 40), (40, 61), (33, 33), (300, 250)])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0])
def test_published_is_timm_s_evaluation_transform(size, crop_pct):
    from timm.data import create_transform

    whole = create_transform((3, 32, 32), crop_pct=crop_pct, interpolation="bicubic", mean=(0,) * 3, std=(1,) * 3)
    ours = np.array(Published(crop_pct)(0, [0])[0](photo(size=size), VIEW))
    assert torch.equal(torch.from_numpy(ours).permute(2, 0, 1) / 255, whole(photo(size=size)))
