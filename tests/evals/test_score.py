"""Intervals against an independent implementation; ranks against sorting."""

import math
from dataclasses import FrozenInstanceError

import pytest
import torch
from scipy.stats import binomtest, t

from mapet.evals.score import mean, rank_of_target, share, student, tops


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
def test_impossible_counts(correct, count):
    with pytest.raises(ValueError, match="is not a share"):
        share(correct, count)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 30, 201])
def test_student(freedom):
    assert student(freedom) == pytest.approx(t.ppf(0.975, freedom), rel=1e-9)


def test_mean_of_repetitions():
    shares = [0.5, 0.6, 0.55, 0.7]
    low, high = t.interval(0.95, 3, loc=0.5875, scale=torch.tensor(shares).std().item() / 2)
    score = mean(shares)
    assert (score.value, score.low, score.high) == pytest.approx((0.5875, low, high), abs=1e-6)
    assert score.count == 4
    wide = mean([0.0, 1.0])
    assert (wide.low, wide.high) == (0, 1)
    with pytest.raises(ValueError, match="no spread"):
        mean([0.5])


def test_the_rank_is_that_of_a_stable_sort():
    scores = torch.randint(0, 4, (200, 9), generator=torch.Generator().manual_seed(0)).float()  # many ties
    labels = torch.arange(200) % 9
    order = scores.argsort(dim=1, descending=True, stable=True)
    assert torch.equal(rank_of_target(scores, labels), (order == labels[:, None]).long().argmax(dim=1))


def test_what_is_not_a_number_is_last():
    scores = torch.full((1, 7), math.nan)
    assert rank_of_target(scores, torch.tensor([0])).item() == 6


def test_top5_needs_more_than_five_classes():
    ranks = torch.tensor([0, 0, 3, 4, 5])
    assert tops(ranks, 5).keys() == {"top1"}
    scores = tops(ranks, 6)
    assert (scores["top1"].value, scores["top5"].value) == (2 / 5, 4 / 5)


def test_a_score_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        share(1, 2).value = 0.9
