"""Colour jitter against torchvision's operations, and its independence of the batch."""

import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from mapet.data.augment import IMAGENET_MEAN, IMAGENET_STD, jitter, jitter_plan, normalize, to_float
from mapet.utils.errors import MapetError

ADJUST = (reference.adjust_brightness, reference.adjust_contrast, reference.adjust_saturation)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(16, 3, 9, 11, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("strength", [0.1, 0.4, 1.5])
def test_jitter_is_torchvision_s_in_the_planned_order(images: torch.Tensor, strength: float) -> None:
    index = torch.arange(100, 116)
    factors, order = jitter_plan(strength, 3, 2, index)
    expected = images.clone()
    for row in range(len(images)):
        for operation in order[row].tolist():
            expected[row] = ADJUST[operation](expected[row], factors[row, operation].item())
    ours = jitter(images, strength, 3, 2, index)
    assert torch.allclose(ours, expected, atol=1e-6)
    assert (ours - images).abs().mean() > 0.01


def test_the_plan_is_uniform_over_factors_and_orders() -> None:
    factors, order = jitter_plan(0.4, 0, 0, torch.arange(6000))
    assert factors.min() >= 0.6
    assert factors.max() <= 1.4
    assert torch.allclose(factors.mean(0), torch.ones(3), atol=0.02)
    assert torch.corrcoef(factors.T).fill_diagonal_(0).abs().max() < 0.05
    counts = torch.unique(order, dim=0, return_counts=True)[1]
    assert len(counts) == 6
    assert (counts - 1000).abs().max() < 150  # deviation 29
    assert jitter_plan(3.0, 0, 0, torch.arange(100))[0].min() >= 0


def test_a_picture_s_jitter_hangs_on_seed_epoch_and_index_alone(images: torch.Tensor) -> None:
    index = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    whole = jitter(images, 0.4, 1, 2, index)
    for part in (slice(0, 5), slice(5, 6), slice(6, 16)):
        assert torch.equal(jitter(images[part], 0.4, 1, 2, index[part]), whole[part])
    same_picture = images[:1].expand(16, -1, -1, -1)
    assert len(torch.unique(jitter(same_picture, 0.4, 1, 2, index), dim=0)) == 16
    assert not torch.allclose(jitter(images, 0.4, 1, 3, index), whole, atol=1e-3)
    assert not torch.allclose(jitter(images, 0.4, 2, 2, index), whole, atol=1e-3)


def test_strength_zero_returns_its_input(images: torch.Tensor) -> None:
    assert jitter(images, 0.0, 1, 2, torch.arange(16)) is images


def test_a_negative_strength_is_refused(images: torch.Tensor) -> None:
    with pytest.raises(MapetError, match="must be >= 0"):
        jitter(images, -0.1, 1, 2, torch.arange(16))


def test_to_float_and_normalize() -> None:
    stored = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    images = to_float(stored)
    assert images.dtype == torch.float32
    assert torch.allclose(images.flatten(), torch.tensor([0, 0.2, 1]))
    expected = reference.normalize(images, list(IMAGENET_MEAN), list(IMAGENET_STD))
    assert torch.allclose(normalize(images), expected)
