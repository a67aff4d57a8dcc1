"""Augmentation: timm's, a pure function of its keys, and leaving the global generators as they were."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from mapet.data.dataset import open_dataset
from mapet.data.decode import decode
from mapet.data.policy import Centre, Erasing, Mixing, Policy, posterize, seeded, transform
from mapet.data.unreadable import UnreadableImages
from mapet.utils.errors import MapetError
from mapet.utils.view import CenterCropResize

VIEW = CenterCropResize((16, 16))
FULL = Policy(3, auto_augment="rand-m9-mstd0.5-inc1")


def draws():
    return random.random(), np.random.random(), torch.rand(1).item()  # noqa: NPY002


def test_seeded_draws_hang_on_the_seed_and_nothing_else_is_disturbed():
    with seeded(5):
        before = draws()
        with seeded(-(2**60)):
            first = draws()
        after = draws()
    with seeded(-(2**60)):
        assert draws() == first
    with seeded(5):
        assert (draws(), draws()) == (before, after)
    assert len({*first, *before, *after}) == 9


def image(seed=0, size=(24, 20)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def looked(policy, epoch, indices):
    return [np.asarray(look(image(index), VIEW)) for look, index in zip(policy(epoch, indices), indices, strict=True)]


def test_a_look_hangs_on_seed_epoch_and_place_alone():
    whole = looked(FULL, 4, range(12))
    torch.manual_seed(99)
    backwards = looked(FULL, 4, range(11, -1, -1))[::-1]
    assert all(np.array_equal(a, b) for a, b in zip(whole, backwards, strict=True))
    for other in (looked(FULL, 5, range(12)), looked(Policy(4, auto_augment=FULL.auto_augment), 4, range(12))):
        assert not any(np.array_equal(a, b) for a, b in zip(whole, other, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_show_the_same(images, workers):
    source, groups = open_dataset(str(images)), [(1, [3, 40, 7]), (2, [3, 11])]
    bad = UnreadableImages(len(source))
    found = torch.cat([b.images for b in decode(source, [VIEW], groups, crops=FULL, workers=workers, bad=bad)])
    expected = [
        np.asarray(look(source.read(index), VIEW))
        for epoch, indices in groups
        for look, index in zip(FULL(epoch, indices), indices, strict=True)
    ]
    assert torch.equal(found, torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2))


def test_without_chance_the_policy_is_the_view():
    square = image(size=(20, 20))
    for hflip, expected in ((0.0, VIEW(square)), (1.0, VIEW(square).transpose(Image.Transpose.FLIP_LEFT_RIGHT))):
        still = Policy(0, scale=(1, 1), ratio=(1, 1), hflip=hflip)
        difference = np.asarray(still(0, [0])[0](square, VIEW)).astype(int) - np.asarray(expected)
        assert abs(difference).max() <= 2  # mirrored before or after resizing


def test_the_defaults_are_timms():
    from timm.data import create_transform

    theirs = create_transform(16, is_training=True, color_jitter=None, separate=True)[0].transforms
    ours = transform(Policy(0), VIEW).transforms[0].transforms
    assert [type(one) for one in ours] == [type(one) for one in theirs]
    assert (ours[0].scale, ours[0].ratio, ours[1].p) == (theirs[0].scale, theirs[0].ratio, theirs[1].p)
    assert (Mixing(0, 4).prob, Mixing(0, 4).switch_prob) == (1.0, 0.5)


def test_randaugment_and_jitter_change_colours():
    still = {"scale": (1, 1), "ratio": (1, 1), "hflip": 0.0}
    plain, augmented, jittered = (
        looked(Policy(0, **still, **more), 0, range(8))
        for more in ({}, {"auto_augment": "rand-m9-mstd0.5"}, {"color_jitter": 0.4})
    )
    assert sum(not np.array_equal(a, b) for a, b in zip(plain, augmented, strict=True)) >= 4
    assert not any(np.array_equal(a, b) for a, b in zip(plain, jittered, strict=True))


@pytest.mark.parametrize("name", ["rand-m10-n6-p1-inc1", "rand-m0-n6-p1", "v0", "original", "augmix-m10", "3a"])
def test_the_strongest_and_weakest_operations_run(name):
    """Pillow 13 refuses to keep 0 bits, which timm asks for at the far end of posterisation."""
    seen = looked(Policy(0, auto_augment=name), 0, range(60))
    assert {image.shape for image in seen} == {(16, 16, 3)}


def test_no_bits_left_is_black_and_some_are_pillows():
    from PIL import ImageOps

    assert not np.asarray(posterize(image(), 0)).any()
    assert np.array_equal(posterize(image(), 3, fillcolor=None), ImageOps.posterize(image(), 3))


@pytest.mark.parametrize("name", ["rand-x9", "rand-mm-m9", "nonsense"])
def test_an_unknown_policy_is_one_line(name):
    with pytest.raises(MapetError, match="auto_augment") as error:
        Policy(0, auto_augment=name)(0, [0])[0](image(), VIEW)
    assert "\n" not in str(error.value)


def test_the_centre_is_the_view_and_its_inner_square():
    framed = Image.new("RGB", (40, 30), "white")
    framed.paste((10, 20, 30), (9, 4, 31, 26))  # the centred 22 × 22, of which 12 × 12 are seen
    (whole,), (inner,) = Centre()(0, [0]), Centre(0.4)(0, [0])
    assert np.array_equal(np.asarray(whole(framed, VIEW)), np.asarray(VIEW(framed)))
    assert np.unique(np.asarray(inner(framed, VIEW)).reshape(-1, 3), axis=0).tolist() == [[10, 20, 30]]


def test_the_centre_is_timms():
    """Where timm's sizes need no rounding; the image is smooth, as timm resamples twice."""
    from timm.data import create_transform

    smooth, side = image(size=(6, 5)).resize((240, 200), Image.Resampling.BICUBIC), CenterCropResize((90, 90))
    theirs = create_transform((3, 90, 90), crop_pct=0.9, interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1))(smooth)
    ours = np.asarray(Centre(0.9)(0, [0])[0](smooth, side)).transpose(2, 0, 1)
    assert abs(theirs.numpy() * 255 - ours).max() <= 2
    assert abs(theirs.numpy() * 255 - np.asarray(side(smooth)).transpose(2, 0, 1)).max() > 20


def test_erasing_hangs_on_the_picture_alone_and_has_its_share():
    images, index = torch.zeros(400, 3, 8, 8), torch.arange(400)
    erase = Erasing(7, 0.25)
    whole = erase(images.clone(), 2, index)
    halves = [erase(part.clone(), 2, i) for part, i in zip(images.split(123), index.split(123), strict=True)]
    assert torch.equal(whole, torch.cat(halves))
    erased = whole.flatten(1).any(dim=1)
    assert 0.17 < erased.float().mean() < 0.33
    area = (whole[erased] != 0).any(dim=1).flatten(1).float().mean(dim=1)
    assert 0.02 <= area.mean() < 1 / 3
    assert not torch.equal(whole, erase(images.clone(), 3, index))
    assert torch.equal(Erasing(7, 0.0)(images.clone(), 2, index), images)
    constant = Erasing(7, 1.0, remode="const")(torch.ones(4, 3, 8, 8), 0, torch.arange(4))
    assert set(constant.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("alphas", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_what_is_mixed_is_what_the_targets_say(alphas):
    """An image that shows its class's number everywhere must, once mixed, have the mean that its target has."""
    labels = torch.tensor([4, 1, 0, 2, 3, 3])
    shares = []
    for step in range(20):
        images = labels.float().view(-1, 1, 1, 1).expand(-1, 3, 9, 7).clone()
        mixed, targets = Mixing(5, 5, *alphas)(images, labels, step)
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(6))
        torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), targets @ torch.arange(5.0), atol=1e-5, rtol=0)
        shares.append(round(targets[0, 4].item(), 6))
    assert len(set(shares)) > 10


def test_mixing_hangs_on_the_step_and_gives_every_process_the_same_factor():
    mix, images, labels = Mixing(5, 4, 0.8, 1.0, smoothing=0.1), torch.rand(4, 3, 8, 8), torch.arange(4)
    first = mix(images.clone(), labels, 3)
    torch.rand(7)
    assert all(map(torch.equal, first, mix(images.clone(), labels, 3)))
    for step in range(10):
        parts = [mix(images[part].clone(), torch.tensor([0, 1]), step)[1] for part in (slice(0, 2), slice(2, 4))]
        assert torch.equal(*parts)


def test_without_mixing_targets_are_smoothed_labels():
    images, labels = torch.rand(3, 3, 4, 4), torch.tensor([2, 0, 1])
    for mix in (Mixing(0, 4, smoothing=0.2), Mixing(0, 4, mixup=0.8, prob=0.0, smoothing=0.2)):
        same, targets = mix(images, labels, 0)
        assert torch.equal(same, images)
        expected = 0.8 * torch.eye(4)[labels] + 0.05
        torch.testing.assert_close(targets, expected)


def test_mixing_has_its_share_of_the_steps_and_cutmix_its_share_of_these():
    """Cutmix leaves each pixel as it was, mixup none. Each of the two images has one value, that of its class."""
    kinds = []
    for step in range(200):
        mixed = Mixing(5, 2, 0.8, 1.0, prob=0.6, switch_prob=0.25)(
            torch.tensor([0.0, 1.0])[:, None, None, None].expand(-1, 3, 8, 8).clone(), torch.tensor([0, 1]), step
        )[0]
        values = set(mixed[0].flatten().tolist())
        kinds.append("none" if values == {0.0} else "cutmix" if values == {0.0, 1.0} else "mixup")
    assert 0.3 < kinds.count("none") / 200 < 0.6, "a mixed image may be as it was"
    assert 0.05 < kinds.count("cutmix") / kinds.count("mixup") < 0.6


def test_an_odd_picture_sits_out():
    images, targets = Mixing(0, 4, 0.8)(torch.rand(3, 3, 4, 4), torch.tensor([2, 0, 1]), 0)
    assert len(images) == len(targets) == 2
