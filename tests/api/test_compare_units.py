"""The units of a comparison's files, and its means over seeds."""

import pytest
from scipy.stats import t

from mapet.api.compare.aggregate import _estimate, _shown

COST = {"images": 3, "macs": 2e9, "training_macs": 5e14, "seconds": 7.0, "peak": 3 * 1024**3}


def test_costs_are_in_the_units_that_their_names_state():
    found = _shown(COST)
    assert found == {
        "images": 3,
        "gmac": 2.0,
        "training_gmac": 5e5,
        "pflop": pytest.approx(3.0),  # two operations each
        "seconds": 7.0,
        "peak_gib": 3.0,
    }
    assert _shown({**COST, "peak": None})["peak_gib"] is None


def test_a_mean_over_seeds_has_students_interval():
    values = [0.5, 0.6, 0.55]
    found, (low, high) = _estimate(values), t.interval(0.95, 2, loc=0.55, scale=0.05 / 3**0.5)
    assert (found.value, found.reach, found.count) == (pytest.approx(0.55), pytest.approx((high - low) / 2), 3)
    assert _estimate([0.5]).reach is None
