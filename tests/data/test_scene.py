"""Augmentation of images and masks together: the same crop, a pure function of its seed, ignored where images end."""

import numpy as np
import pytest
import torch
from PIL import Image

from mapet.data.scene import Scenes, distortion
from mapet.utils.view import CenterCropResize

VIEWS = CenterCropResize((32, 32)), CenterCropResize((32, 32), "nearest")


def scene(width=60, height=40):
    """Squares whose red value is 40 × their target."""
    targets = np.indices((height, width)).sum(0) // 16 % 5
    targets = targets.astype(np.uint8)
    pixels = np.stack([40 * targets, targets * 0, targets * 0, targets], axis=2)
    return Image.fromarray(pixels)


def shown(scenes, image, index=3, epoch=1):
    (transform,) = scenes(epoch, [index])
    return [np.asarray(transform(image, view)) for view in VIEWS]


@pytest.mark.parametrize("index", range(6))
def test_the_mask_shows_what_the_image_shows(index):
    pixels, mask = shown(Scenes(0, photometric=False), scene(), index)
    assert (mask[..., 0] == mask[..., 2]).all()
    known = mask[..., 0] != 255
    assert known.any()
    near = np.abs(pixels[..., 0].astype(int) - 40 * mask[..., 0].astype(int)) <= 20
    assert near[known].mean() > 0.8, "bilinear edges apart"
    assert (pixels[~known] == [124, 116, 104]).all()


def test_a_scene_is_a_pure_function_of_seed_epoch_and_index():
    torch.manual_seed(1)
    one = shown(Scenes(0), scene())
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = shown(Scenes(0), scene())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    for other in (shown(Scenes(1), scene()), shown(Scenes(0), scene(), 4), shown(Scenes(0), scene(), epoch=2)):
        assert not np.array_equal(one[0], other[0])


def test_scales_lie_within_their_bounds():
    image, found = scene(64, 32), set()
    for index in range(40):
        _, mask = shown(Scenes(0, (0.5, 2.0)), image, index)
        rows = (mask[..., 0] != 255).any(axis=1).sum()
        found.add(int(rows))
    assert min(found) < 20
    assert max(found) == 32
    _, mask = shown(Scenes(0, (1, 1), hflip=0), image)
    assert (mask != 255).all()


def test_long_images_are_bounded_by_four_crops():
    scenes = Scenes(0, (1, 1))
    assert scenes._scaled((10, 1000), (32, 32), 0.5) == (1, 128)


def test_crops_reach_every_edge_and_not_beyond():
    scenes, mask, last = Scenes(0), scene(50, 40).getchannel("A"), 1 - 2.0**-53
    for full, corner in (((40, 50), (8, 18)), ((32, 32), (0, 0)), ((20, 33), (0, 1))):
        assert scenes._corner(mask, full, (32, 32), [0.0, 0.0]) == (0, 0)
        assert scenes._corner(mask, full, (32, 32), [last, last]) == corner


def test_a_crop_of_one_class_is_drawn_anew():
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:12, :12, 3] = 1  # a small object in a corner
    image = Image.fromarray(pixels)
    with_object = [
        sum((shown(Scenes(0, (2, 2), cat_max_ratio=ratio), image, i)[1][..., 0] == 1).any() for i in range(30))
        for ratio in (1.0, 0.95)
    ]
    assert with_object[1] > 5


def test_flips_and_distortion_can_be_off():
    image = scene(32, 32)
    pixels, mask = shown(Scenes(0, (1, 1), hflip=0, photometric=False), image)
    assert np.array_equal(mask[..., 0], np.asarray(image)[..., 3])
    assert np.array_equal(pixels, np.asarray(image)[..., :3])
    mirrored, _ = shown(Scenes(0, (1, 1), hflip=1, photometric=False), image)
    assert np.array_equal(mirrored[:, ::-1], pixels)
    distorted = [shown(Scenes(0, (1, 1), hflip=0), image, i)[0] for i in range(5)]
    assert any(not np.array_equal(one, pixels) for one in distorted)


def test_the_defaults_and_strengths_are_mmsegmentation_s():
    scenes = Scenes(0)
    assert not scenes.whole
    assert (scenes.scale, scenes.hflip, scenes.photometric, scenes.cat_max_ratio) == ((0.5, 2.0), 0.5, True, 0.75)
    jitters = [(one.p, one.transforms[0]) for one in distortion().transforms]
    assert [chance for chance, _ in jitters] == [0.5] * 4
    assert [(one.brightness, one.contrast, one.saturation, one.hue) for _, one in jitters] == [
        ((0.875, 1.125), None, None, None),
        (None, (0.5, 1.5), None, None),
        (None, None, (0.5, 1.5), None),
        (None, None, None, (-0.1, 0.1)),
    ]
