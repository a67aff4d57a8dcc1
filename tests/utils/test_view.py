"""Which part of an image a view shows, and at what size."""

import numpy as np
import pytest
from PIL import Image

from mapet.utils.errors import MapetError
from mapet.utils.view import INTERPOLATIONS, CenterCropResize


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("image", "size", "box"),  # box: left, upper, right, lower
    [
        ((32, 32), (16, 16), (0, 0, 32, 32)),
        ((32, 64), (16, 16), (16, 0, 48, 32)),  # wide: the central square
        ((64, 32), (16, 16), (0, 16, 32, 48)),  # tall
        ((32, 64), (8, 16), (0, 0, 64, 32)),  # a wide view of an image of its aspect
        ((64, 64), (8, 16), (0, 16, 64, 48)),  # a wide view of a square
        ((64, 64), (32, 8), (24, 0, 40, 64)),  # a tall view
        ((8, 12), (16, 16), (2, 0, 10, 8)),  # enlarged
    ],
)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_view_is_the_central_crop_resized(
    image: tuple[int, int], size: tuple[int, int], box: tuple[int, int, int, int], interpolation: str
) -> None:
    whole = noise(*image)
    height, width = size
    seen = CenterCropResize(size, interpolation)(whole)
    method = Image.Resampling[interpolation.upper()]
    assert seen.size == (width, height)
    assert np.array_equal(seen, whole.resize((width, height), method, box=box))


def test_a_picture_of_the_view_s_own_size_is_untouched() -> None:
    image = noise(12, 20)
    assert np.array_equal(CenterCropResize((12, 20))(image), image)


def test_pictures_of_one_pixel_and_extreme_aspects_have_a_view() -> None:
    for shape in ((1, 1), (1, 500), (500, 1)):
        assert CenterCropResize((4, 6))(noise(*shape)).size == (6, 4)


def test_another_size_keeps_the_crop_and_another_aspect_is_refused() -> None:
    assert CenterCropResize((32, 64), "lanczos").at((16, 32)) == CenterCropResize((16, 32), "lanczos")
    with pytest.raises(MapetError, match="aspect"):
        CenterCropResize((32, 32)).at((16, 32))


def test_a_view_survives_json() -> None:
    view = CenterCropResize((32, 64), "bilinear")
    assert CenterCropResize.from_dict(view.to_dict()) == view


def test_impossible_views_are_refused() -> None:
    with pytest.raises(MapetError, match='Did you mean "bicubic"'):
        CenterCropResize((4, 4), "bicubik")
    with pytest.raises(MapetError, match="must be >= 1"):
        CenterCropResize((0, 4))


@pytest.mark.parametrize("size", [(2, 5), (1, 1), (6, 3)])
def test_a_given_box_replaces_the_central_crop(size: tuple[int, int]) -> None:
    whole, box = noise(20, 30), (3, 5, 17, 12)
    seen = CenterCropResize(size, "bilinear")(whole, box)
    expected = whole.crop(box).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    assert np.array_equal(seen, expected)


def test_any_multiple_of_a_view_shows_the_same() -> None:
    for size in ((1, 2), (3, 6), (50, 100)):
        assert CenterCropResize((32, 64)).at(size) == CenterCropResize(size)
    for size in ((32, 65), (31, 64), (64, 32)):
        with pytest.raises(MapetError, match="aspect"):
            CenterCropResize((32, 64)).at(size)
