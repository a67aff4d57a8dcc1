"""Crops are torchvision's, hang on (seed, epoch, index) alone, and are the same for views of every size."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import RandomResizedCrop, functional, transforms

from mapet.data.crop import CANDIDATES, CROP, Crop, Crops
from mapet.utils.rng import uniform
from mapet.utils.view import Box, CenterCropResize

SHAPES = [(32, 32), (40, 24), (24, 40), (333, 500), (500, 30), (30, 500), (2, 90), (90, 2), (1, 1)]  # width, height
LAWS = [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.2, 0.9), (1.0, 1.0)), ((0.9, 1.0), (0.5, 2.0)), ((0.5, 0.5), (1.6, 3.0))]


class Fake:
    """Stands for ``torch`` inside torchvision's transforms: the same functions, but random numbers of our choice."""

    log, exp = staticmethod(torch.log), staticmethod(torch.exp)

    def __init__(self, numbers: torch.Tensor) -> None:
        self.candidates, self.row, self.asked = iter(numbers.tolist()), [0.0], 0

    def tensor(self, values: tuple[float, float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    def empty(self, size: int) -> SimpleNamespace:
        """The area begins a try, the aspect follows."""
        self.asked += 1
        self.row = next(self.candidates) if self.asked % 2 else self.row
        number = self.row[1 - self.asked % 2]
        return SimpleNamespace(uniform_=lambda low, high: torch.as_tensor(low + (high - low) * number))

    def randint(self, low: int, high: int, size: tuple[int]) -> torch.Tensor:
        """The upper edge is drawn before the left."""
        return torch.tensor(int(self.row.pop() * high))


def theirs(law: tuple[tuple[float, float], tuple[float, float]], size: tuple[int, int], numbers: torch.Tensor) -> Box:
    """torchvision's box from the numbers (CANDIDATES, 4) that ours are made of."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transforms, "torch", Fake(numbers))
        upper, left, h, w = RandomResizedCrop.get_params(Image.new("RGB", size), list(law[0]), list(law[1]))
    return left, upper, left + w, upper + h


@pytest.mark.parametrize("law", LAWS)
def test_boxes_are_torchvision_s(law: tuple[tuple[float, float], tuple[float, float]]) -> None:
    indices = list(range(40))
    keys = torch.tensor(indices)[:, None, None], torch.arange(CANDIDATES)[:, None], torch.arange(4)
    numbers = uniform(7, CROP, 3, *keys)
    for index, crop in zip(indices, Crops(7, *law)(3, indices), strict=True):
        for size in SHAPES:
            assert crop.box(*size) == theirs(law, size, numbers[index]), (index, size)


@pytest.mark.parametrize("law", LAWS)
def test_boxes_lie_in_the_picture_and_are_not_empty(law: tuple[tuple[float, float], tuple[float, float]]) -> None:
    for crop in Crops(1, *law)(0, range(100)):
        for width, height in SHAPES:
            left, upper, right, lower = crop.box(width, height)
            assert 0 <= left < right <= width
            assert 0 <= upper < lower <= height


def uniformity(values: np.ndarray) -> float:
    """Kolmogorov's statistic of values against the uniform distribution on [0, 1], times √n: 1.95 at p = 0.001."""
    ordered, steps = np.sort(values), np.arange(len(values) + 1) / len(values)
    return math.sqrt(len(values)) * max(np.abs(ordered - steps[1:]).max(), np.abs(ordered - steps[:-1]).max())


def test_areas_aspects_and_places_are_uniform_and_independent() -> None:
    side, (low, high), ratio = 4000, (0.1, 0.5), 1.5  # every first try fits
    boxes = [crop.box(side, side) for crop in Crops(0, (low, high), (1 / ratio, ratio), 0.3)(5, range(4000))]
    left, upper, right, lower = np.array(boxes, dtype=float).T
    width, height = right - left, lower - upper
    columns = {
        "area": (width * height / side**2 - low) / (high - low),
        "aspect": np.log(width / height) / math.log(ratio) / 2 + 0.5,
        "left": left / (side - width),
        "upper": upper / (side - height),
    }
    for name, values in columns.items():
        assert uniformity(values) < 1.95, name
        assert uniformity(values.clip(0) ** 1.2) > 1.95, name  # the test would see so little
    correlated = np.corrcoef(list(columns.values())) - np.eye(4)
    assert np.abs(correlated).max() < 0.06  # deviation 0.016


def test_flips_have_their_share_and_are_their_own() -> None:
    crops = Crops(0, (0.2, 1.0), hflip=0.3)(0, range(6000))
    flips = np.array([crop.flip for crop in crops])
    assert abs(flips.mean() - 0.3) < 0.024  # four deviations
    assert abs(np.corrcoef(flips, [crop.candidates[0][0] for crop in crops])[0, 1]) < 0.05
    assert flips.tolist() != [crop.flip for crop in Crops(0, (0.2, 1.0), hflip=0.3)(1, range(6000))]
    assert [any(c.flip for c in Crops(0, hflip=share)(0, range(50))) for share in (0.0, 1.0)] == [False, True]
    assert all(crop.flip for crop in Crops(0, hflip=1.0)(0, range(50)))


def test_a_crop_hangs_on_seed_epoch_and_place_alone() -> None:
    law = Crops(3, (0.2, 1.0), hflip=0.5)
    whole = law(2, range(50))
    assert [law(2, [index])[0] for index in range(50)] == whole
    assert law(2, [40, 7, 7, 3]) == [whole[40], whole[7], whole[7], whole[3]]
    boxes = [crop.box(300, 200) for crop in whole]
    assert len(set(boxes)) == 50
    for other in (law(3, range(50)), Crops(4, (0.2, 1.0), hflip=0.5)(2, range(50))):
        assert not set(boxes) & {crop.box(300, 200) for crop in other}
    with_other_flips = Crops(3, (0.2, 1.0), hflip=0.1)(2, range(50))
    assert boxes == [crop.box(300, 200) for crop in with_other_flips]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "view", [CenterCropResize((16, 16)), CenterCropResize((40, 40), "lanczos"), CenterCropResize((24, 24), "bilinear")]
)
@pytest.mark.parametrize("size", [(32, 32), (40, 24), (24, 70)])
def test_every_view_is_resized_from_the_same_part_of_the_original(
    view: CenterCropResize, size: tuple[int, int]
) -> None:
    image = noise(*size)
    for crop in Crops(0, (0.2, 1.0), hflip=0.5)(0, range(12)):
        left, upper, right, lower = crop.box(*size)
        cut = image.crop((left, upper, right, lower))
        expected = cut.resize((view.size[1], view.size[0]), Image.Resampling[view.interpolation.upper()])
        expected = ImageOps.mirror(expected) if crop.flip else expected
        assert np.array_equal(crop(image, view), expected)
        mode = functional.InterpolationMode(view.interpolation)
        reference = functional.resized_crop(image, upper, left, lower - upper, right - left, list(view.size), mode)
        assert np.array_equal(crop(image, view), functional.hflip(reference) if crop.flip else reference)


def test_without_a_scale_it_is_the_view_itself_or_its_mirror_image() -> None:
    image, view = noise(50, 34), CenterCropResize((16, 16))
    assert np.array_equal(Crop()(image, view), view(image))
    crops = Crops(0, hflip=0.5)(0, range(20))
    assert {crop.flip for crop in crops} == {False, True}
    for crop in crops:
        assert crop.box(50, 34) is None
        assert np.array_equal(crop(image, view), np.asarray(view(image))[:, :: -1 if crop.flip else 1])
