"""Masks of images and their counts, against the logits of whole images."""

import pytest
import torch
from torch.nn import functional as F

from mapet.evals import segmentation
from mapet.evals.iou import overlap
from mapet.evals.segmentation import Segmenting, counts_of, segmented
from mapet.evals.upernet import Segmenter, _starts, sliding_logits

CPU = torch.device("cpu")


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Segmenter(
        img_size=(16, 16), num_classes=7, channels=8, auxiliary_channels=4, patch_size=4, embed_dim=16, depth=2,
        num_heads=2, drop_path_rate=0.5,
    )  # fmt: skip
    torch.nn.init.normal_(model.decode_head.classifier.weight)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("part", [1, 3, 7])
@pytest.mark.parametrize("size", [(16, 24), (11, 7), (40, 50)])
def test_the_class_is_that_of_the_largest_resized_logit_however_many_are_resized_at_once(
    model, monkeypatch, size, part
):
    image = torch.randn(3, 16, 24)
    logits = F.interpolate(sliding_logits(model, image[None]), size, mode="bilinear", align_corners=False)[0]
    monkeypatch.setattr(segmentation, "RESIZED", part * size[0] * size[1])
    found = segmented(model, image, size)
    assert found.unique().numel() > 1
    assert torch.equal(found, logits.argmax(dim=0))


@torch.no_grad()
def test_at_least_one_class_is_resized_at_once(model, monkeypatch):
    image = torch.randn(3, 16, 16)
    expected = segmented(model, image, (16, 16))
    monkeypatch.setattr(segmentation, "RESIZED", 1)
    assert torch.equal(segmented(model, image, (16, 16)), expected)


def test_counts_are_those_of_each_image_in_evaluation_mode(model):
    model.eval()
    pairs = [
        (2, torch.randn(3, 16, 20), torch.randint(-1, 7, (10, 14))),
        (0, torch.randn(3, 16, 16), torch.ones(8, 9, dtype=torch.int64)),
    ]
    expected = torch.zeros(4, 7, 3, dtype=torch.int64)
    for index, image, target in pairs:
        expected[index] = overlap(segmented(model, image, tuple(target.shape), 8), target, 7)
    model.train()
    assert torch.equal(counts_of(model, pairs, 4, CPU, 8), expected)
    assert not model.training
    assert not expected[1].any()


def test_windows_begin_every_two_thirds_of_one_and_the_last_ends_with_the_image():
    assert _starts(30, 16, None) == [0, 10, 14]
    assert _starts(30, 16, 7) == [0, 7, 14]
    assert _starts(12, 16, None) == [0]
    assert _starts(3, 1, None) == [0, 1, 2]


def test_the_head_reads_four_blocks():
    def taps(depth):
        small = {"patch_size": 4, "embed_dim": 8, "num_heads": 1, "channels": 8, "auxiliary_channels": 4}
        return Segmenter(img_size=(16, 16), num_classes=2, depth=depth, **small).taps

    assert taps(12) == [4, 6, 8, 12]
    assert taps(1) == [1, 1, 1, 1]


def test_the_auxiliary_head_counts_two_fifths_unless_told_otherwise(model):
    assert Segmenting(model).auxiliary_weight == 0.4
