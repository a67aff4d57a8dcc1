"""Intervals against an independent implementation; ranks against sorting."""

import math

import pytest
import torch
from scipy.stats import binomtest

from mapet.evals.score import place, share, tops


@pytest.mark.parametrize(("correct", "count"), [(0, 10), (3, 10), (10, 10), (613, 1000), (1, 1), (9, 10_000)])
def test_wilson(correct, count):
    expected = binomtest(correct, count).proportion_ci(0.95, method="wilson")
    score = share(correct, count)
    assert score.value == correct / count
    assert score.low == pytest.approx(expected.low, abs=1e-12)
    assert score.high == pytest.approx(expected.high, abs=1e-12)


def test_printed():
    assert str(share(613, 1000)) == "61.3 % (58.2 – 64.3)"


@pytest.mark.parametrize(("correct", "count"), [(0, 0), (-1, 5), (6, 5)])
def test_no_share(correct, count):
    with pytest.raises(ValueError, match="no share"):
        share(correct, count)


def test_place_is_the_place_in_a_stable_sort():
    scores = torch.randint(0, 4, (200, 9), generator=torch.Generator().manual_seed(0)).float()  # many ties
    labels = torch.arange(200) % 9
    order = scores.argsort(dim=1, descending=True, stable=True)
    assert torch.equal(place(scores, labels), (order == labels[:, None]).long().argmax(dim=1))


def test_what_is_not_a_number_is_last():
    scores = torch.full((1, 7), math.nan)
    assert place(scores, torch.tensor([0])).item() == 6


def test_top5_needs_more_than_five_classes():
    places = torch.tensor([0, 0, 3, 4, 5])
    assert tops(places, 5).keys() == {"top1"}
    scores = tops(places, 6)
    assert (scores["top1"].value, scores["top5"].value) == (2 / 5, 4 / 5)
