"""Subset maps, several labels, calibration and corruption errors equal slow references."""

from statistics import fmean

import numpy as np
import pytest
import torch

from mapet.evals.robustness import against, best_ranks, calibration_error, mean_corruption_error
from mapet.utils.errors import MapetError


def test_ranks_with_several_labels_are_those_of_sorted_scores():
    scores = torch.randn(200, 7).mul(2).round()  # with ties, which go by class
    labels = torch.randint(7, (200, 3))
    for row, right, rank in zip(scores.tolist(), labels.tolist(), best_ranks(scores, labels).tolist(), strict=True):
        ordered = sorted(range(7), key=lambda c: (-row[c], c))
        assert rank == min(ordered.index(c) for c in right)


@pytest.mark.parametrize("bins", [1, 2, 15])
def test_calibration_error_is_that_of_bins_one_by_one(bins):
    confidence = torch.cat([torch.rand(300), torch.linspace(0, 1, bins + 1)])  # on the bounds, too
    correct = torch.rand(len(confidence)) < 0.5
    total = 0.0
    for b in range(bins):
        inside = [
            i for i, c in enumerate(confidence.double().tolist())
            if b / bins < c <= (b + 1) / bins or (b == 0 and c == 0)
        ]  # fmt: skip
        if inside:
            mean = fmean(float(confidence[i]) for i in inside)
            total += len(inside) * abs(fmean(bool(correct[i]) for i in inside) - mean)
    assert calibration_error(confidence, correct, bins) == pytest.approx(total / len(confidence), abs=1e-12)


def test_a_calibrated_and_a_boasting_classifier():
    assert calibration_error(torch.full((4,), 0.75), torch.tensor([True, True, True, False])) == pytest.approx(0)
    assert calibration_error(torch.ones(4), torch.zeros(4, dtype=torch.bool)) == 1
    with pytest.raises(ValueError, match="no images"):
        calibration_error(torch.ones(0), torch.zeros(0, dtype=torch.bool))


def test_corruption_errors_are_the_published_sums():
    chance = np.random.default_rng(0)
    wrong, base = ({name: list(chance.uniform(0.3, 0.9, 5)) for name in "abc"} for _ in range(2))
    clean, base_clean = 0.1, 0.2
    assert mean_corruption_error(wrong) == pytest.approx(np.mean(list(wrong.values())))
    ce = [sum(wrong[name]) / sum(base[name]) for name in "abc"]
    relative = [
        sum(e - clean for e in wrong[name]) / sum(e - base_clean for e in base[name]) for name in "abc"
    ]  # fmt: skip
    assert against(wrong, clean, base, base_clean) == pytest.approx((np.mean(ce), np.mean(relative)))
    assert against(base, base_clean, base, base_clean) == pytest.approx((1, 1))
    assert against(wrong, clean, base, 0.95)[1] is None  # the baseline is better on corrupted images


@pytest.mark.parametrize(
    ("base", "reason"), [({"a": [0.0]}, "no error"), ({"b": [0.5]}, "other"), ({"a": [0.5, 0.5]}, "other")]
)
def test_a_baseline_that_does_not_fit_is_refused(base, reason):
    with pytest.raises(MapetError, match=reason):
        against({"a": [0.5]}, 0.1, base, 0.1)


def test_against_a_baseline_that_loses_nothing_there_is_no_relative_error():
    assert against({"a": [0.5]}, 0.1, {"a": [0.25]}, 0.25) == (2.0, None)


def test_against_a_baseline_that_loses_little_the_relative_error_is_large():
    assert against({"a": [0.5]}, 0.1, {"a": [0.5]}, 0.1) == pytest.approx((1, 1))
    assert against({"a": [0.5]}, 0.1, {"a": [0.2]}, 0.1) == pytest.approx((2.5, 4))


def test_there_are_fifteen_bins_unless_told_otherwise():
    """As in the paper."""
    confidence = torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    correct = torch.arange(500) % 3 == 0
    assert calibration_error(confidence, correct) == calibration_error(confidence, correct, 15)
    assert calibration_error(confidence, correct) != calibration_error(confidence, correct, 16)
