"""The units of a comparison's files, and its means over seeds."""

from types import SimpleNamespace as Result

import pytest
from scipy.stats import t

from mapet.api.compare.aggregate import _entry, _estimate, _shown

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


def test_an_entry_has_the_mean_time_and_the_largest_memory_of_its_seeds():
    plan, variant = Result(measures=["knn", "fewshot"]), Result(method="own.py:Groups", setting="k=1")
    cost = {**COST, "epochs": 2.0}
    first = {"cost": {**cost, "peak": 2**30}, "knn": {"top1": {"value": 0.5}, "top5": {"value": 0.9}}}
    second = {"cost": {**cost, "seconds": 8.0}, "knn": {"top1": {"value": 0.6}, "top5": {"value": 0.9}}}
    one, both = _entry(plan, variant, [first]), _entry(plan, variant, [first, second])
    assert (one.name, one.epochs, one.images, one.gmac, one.pflop) == ("Groups (k=1)", 2.0, 3, 2.0, pytest.approx(3.0))
    assert (one.seconds, one.peak, both.seconds, both.peak) == (7.0, 1.0, 7.5, 3.0)
    assert one.accuracy.keys() == both.accuracy.keys() == {("knn", "top1")}
    assert [entry.accuracy["knn", "top1"].count for entry in (one, both)] == [1, 2]
    assert both.accuracy["knn", "top1"].value == pytest.approx(0.55)
    unknown = {**first, "cost": {**cost, "seconds": None, "peak": None}}
    assert (_entry(plan, variant, [unknown]).seconds, _entry(plan, variant, [unknown]).peak) == (None, None)
