"""Few-shot against scikit-learn, on data whose answer is known, and draws that are what they claim."""

from statistics import fmean, stdev

import pytest
import torch
from scipy.stats import t
from sklearn.linear_model import LogisticRegression

from mapet.evals import fewshot as module
from mapet.evals.fewshot import PENALTY, drawn, fewshot, protocol
from mapet.evals.linear import standardised
from mapet.utils.errors import MapetError


def clusters(count, classes, noise, seed, width=8):
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % classes
    generator = torch.Generator().manual_seed(seed)
    return centres[labels] + noise * torch.randn(count, width, generator=generator), labels


@pytest.fixture
def sets():
    return clusters(300, 6, 1.0, seed=1), clusters(300, 6, 1.0, seed=2)


def test_separable_data_are_separated_by_one_image():
    scores = fewshot(clusters(120, 6, 0.01, seed=1), clusters(120, 6, 0.01, seed=2), classes=6)
    assert list(scores) == ["1-shot", "5-shot", "10-shot"]
    assert all((score.value, score.low, score.high, score.count) == (1, 1, 1, 5) for score in scores.values())


def test_random_labels_give_the_accuracy_of_guessing():
    vectors = torch.randn(4000, 8, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(4000) % 4
    scores = fewshot((vectors[:2000], labels[:2000]), (vectors[2000:], labels[2000:]), classes=4, draws=20)
    for score in scores.values():
        assert score.low - 0.01 < 1 / 4 < score.high + 0.01  # all draws share one set of 2000 test images


def test_more_images_help(sets):
    one, five, ten = (score.value for score in fewshot(*sets, classes=6, draws=10).values())
    assert 1 / 6 + 0.1 < one < five < ten < 1


def test_two_draws_are_enough(sets):
    assert fewshot(*sets, classes=6, shots=(1,), draws=2)["1-shot"].count == 2


def test_mean_and_interval_over_draws_are_scikit_learns(sets):
    train, test = sets
    x_train, x_test = (part / 8**0.5 for part in standardised(train[0], test[0]))
    shares = []
    for draw in range(4):
        rows = drawn(train[1], 6, 5, seed=7, draw=draw)
        oracle = LogisticRegression(C=1 / (PENALTY * 30), tol=1e-8, max_iter=1000).fit(x_train[rows], train[1][rows])
        shares.append(oracle.score(x_test, test[1]))
    found = fewshot(train, test, classes=6, shots=(5,), draws=4, seed=7)["5-shot"]
    reach = t.ppf(0.975, 3) * stdev(shares) / 2
    assert found.value == pytest.approx(fmean(shares), abs=2 / 300)
    assert (found.high - found.low) / 2 == pytest.approx(reach, abs=0.01)
    assert found.count == 4


def test_draws():
    labels = torch.arange(200) % 4
    five, ten, other, reseeded = (
        drawn(labels, 4, count, seed, draw) for count, seed, draw in ((5, 0, 0), (10, 0, 0), (10, 0, 1), (10, 1, 0))
    )
    for rows, count in ((five, 5), (ten, 10), (other, 10)):
        assert labels[rows].bincount().tolist() == [count] * 4
        assert len(rows.unique()) == 4 * count
    assert set(five.tolist()) < set(ten.tolist())
    assert len({tuple(rows.tolist()) for rows in (ten, other, reseeded)}) == 3


def test_scale_and_shift_do_not_matter(sets):
    ema_update = [(1e3 * (vectors + torch.arange(8.0)), labels) for vectors, labels in sets]
    for found, wanted in zip(fewshot(*ema_update, classes=6).values(), fewshot(*sets, classes=6).values(), strict=True):
        assert found.value == pytest.approx(wanted.value, abs=1 / 300)


def test_results_do_not_depend_on_the_global_seed(sets):
    first = fewshot(*sets, classes=6, seed=3)
    torch.manual_seed(123)
    with torch.no_grad():
        assert fewshot(*sets, classes=6, seed=3) == first
    assert fewshot(*sets, classes=6, seed=4) != first


def test_the_protocol_names_its_settings():
    assert "L2 penalty 0.01" in protocol()
    assert "t-interval over 7 draws" in protocol(draws=7)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"shots": (0,)}, r"shots must be >= 1, got \[0\]"),
        ({"shots": ()}, r"shots must be >= 1, got \[\]"),
        ({"shots": (1, 51)}, "Class 0 has 50 training images, fewer than 51 shots"),
        ({"draws": 1}, "draws must be >= 2, .* got 1"),
    ],
)
def test_mistakes(sets, settings, reason):
    with pytest.raises(MapetError, match=reason) as caught:
        fewshot(*sets, classes=6, **settings)
    assert "\n" not in str(caught.value)


def test_draws_are_those_of_earlier_versions():
    assert drawn(torch.arange(40) % 2, 2, 3, 5, 7).tolist() == [9, 10, 14, 25, 26, 39]


def test_features_are_standardised_and_divided_by_the_root_of_their_width(sets, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "_accuracy", lambda train, test, classes: seen.append(test[0]) or 0.5)
    (train, labels), test = sets
    fewshot((train, labels), test, classes=6, shots=(1,), draws=2)
    torch.testing.assert_close(seen[0], standardised(train, test[0])[1] / 8**0.5)


def test_the_seed_is_zero_unless_told_otherwise(sets):
    assert fewshot(*sets, classes=6, shots=(1,), draws=3) == fewshot(*sets, classes=6, shots=(1,), draws=3, seed=0)
    assert fewshot(*sets, classes=6, shots=(1,), draws=3) != fewshot(*sets, classes=6, shots=(1,), draws=3, seed=1)


def test_all_images_of_the_smallest_class_may_be_drawn(sets):
    train, test = sets
    assert fewshot(train, test, classes=6, shots=(50,), draws=2)["50-shot"].count == 2
    with pytest.raises(MapetError, match="fewer than 51 shots"):
        fewshot(train, test, classes=6, shots=(51,), draws=2)
