"""Counting, rates and what follows from them."""

import inspect
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from mapet.api.benchmark import predict, rates
from mapet.api.benchmark.case import Case
from mapet.api.benchmark.measure import batch_rows
from mapet.api.benchmark.rates import Rates
from mapet.api.benchmark.report import read_rates
from mapet.build.pretrain import build_objective
from mapet.config.recipe import Model, Objective, Optimization, Recipe
from mapet.method.cost import Work
from mapet.utils.errors import MapetError

EIGHT = Optimization(batch_size=8)
UNIT = Rates("cpu", "float32", 192, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)


def built(objective, model="vit_tiny"):
    with torch.device("meta"):
        return build_objective(Recipe(model=Model(name=model), objective=Objective(name=objective)), 8192)


def seconds(objective, batch, rates):
    return sum(predict.parts(objective, batch, rates).values())


@pytest.mark.parametrize("objective", ["mapet", "pet", "mim", "cae", "mae"])
def test_parts_at_unit_rates_are_the_counts(objective):
    model = built(objective)
    found, work = predict.parts(model, 5, UNIT), model.work(training=True)
    assert found["products with weights"] + found["attention"] == 5 * 2 * model.macs(training=True)
    assert found["norms, activations, sums"] == 5 * work.states
    assert found["optimiser"] == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_only_a_masked_objective_reads_at_the_masked_rate():
    slow = replace(UNIT, masked=0.5)
    assert seconds(built("mapet"), 2, slow) > seconds(built("mapet"), 2, UNIT)
    assert seconds(built("mim"), 2, slow) == seconds(built("mim"), 2, UNIT)


def test_twice_the_speed_is_half_the_time():
    fast = Rates("cpu", "float32", 192, *([2.0] * 7))
    assert seconds(built("cae"), 3, UNIT) == pytest.approx(2 * seconds(built("cae"), 3, fast))


def test_work_adds_up():
    assert Work(1, 2, 3, 4) + Work(10, 20, 30, 40) == Work(11, 22, 33, 44)
    assert Work(1, 2, 3, 4) * 3 == Work(3, 6, 9, 12)
    assert Work(5, 6).macs == 11


def test_the_nearest_width_of_the_same_precision():
    known = [replace(UNIT, width=width) for width in (192, 768)]
    assert predict.nearest(known, 384, "float32").width == 192
    assert predict.nearest(known, 400, "float32").width == 768
    with pytest.raises(MapetError, match="bfloat16"):
        predict.nearest(known, 192, "bfloat16")


def test_every_rate_is_measured(monkeypatch):
    monkeypatch.setattr(rates, "ROWS", {"cpu": 64})
    monkeypatch.setattr(rates, "SQUARE", {"cpu": 64})
    monkeypatch.setattr(rates, "PARAMETERS", {"cpu": 1 << 16})
    monkeypatch.setattr(rates, "VOCABULARY", 32)
    before = torch.random.get_rng_state()
    found = rates.measure(64, "float32", torch.device("cpu"), seconds=1e-3)
    assert torch.equal(before, torch.random.get_rng_state())
    assert (found.device, found.precision, found.width) == ("cpu", "float32", 64)
    assert all(value > 0 for value in vars(found).values() if isinstance(value, float))


def test_rates_are_amounts_over_the_shortest_time(monkeypatch):
    """Two operations for a product, three times as much with the backward pass; scores have a fourth of the rows."""
    for name, value in (("ROWS", 64), ("SQUARE", 256), ("PARAMETERS", 1 << 16)):
        monkeypatch.setattr(rates, name, {"cpu": value})
    monkeypatch.setattr(rates, "VOCABULARY", 32)
    monkeypatch.setattr(rates, "timed", lambda work, device, seconds: [3.0, 0.5, 1.0])
    found = rates.measure(48, "float32", torch.device("cpu"), rows=40)
    assert found.linear == 2 * (2 * 3 * 40 * 12 * 48**2)
    assert found.states == 2 * (3 * 40 * 48)
    assert found.scores == 2 * (3 * 10 * 32)
    assert found.parameters == 2 * 2**16
    assert found.peak == 2 * (2 * 256**3)
    assert found.attention == found.masked > 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_backward_pass_leaves_no_gradient_to_be_added_to(precision, monkeypatch):
    monkeypatch.setattr(rates, "ROWS", {"cpu": 64})
    monkeypatch.setattr(rates, "VOCABULARY", 32)
    device = torch.device("cpu")
    kinds = {
        "linear": rates._linear(64, 64, precision, device),
        "attention": rates._attention(64, precision, device, masked=True)[1],
        "states": rates._states(64, 64, precision, device),
        "scores": rates._scores(16, precision, device),
    }
    for name, work in kinds.items():
        held = tensors(inspect.getclosurevars(work).nonlocals.values())
        asked = [tensor for tensor in held if tensor.requires_grad]
        assert asked, name
        reached = []
        for tensor in asked:
            tensor.register_hook(lambda grad, reached=reached: reached.append(grad.shape))
        work()
        assert len(reached) == len(asked), f"{name}: the gradient of each, once a call"
        assert all(tensor.grad is None for tensor in asked), name


def tensors(things):
    """All tensors in a closure, in lists and modules too."""
    found = []
    for thing in things:
        if isinstance(thing, torch.Tensor):
            found.append(thing)
        elif isinstance(thing, nn.Module):
            found += thing.parameters()
        elif isinstance(thing, list | tuple):
            found += tensors(thing)
    return list({id(tensor): tensor for tensor in found}.values())


def test_the_median_of_a_machine_is_each_rate_s():
    fast, slow = (replace(UNIT, peak=peak, linear=linear) for peak, linear in ((3.0, 1.0), (1.0, 5.0)))
    assert rates.median([fast, UNIT, slow]) == replace(UNIT, peak=1.0, linear=1.0)
    assert rates.median([fast, slow]) == replace(UNIT, peak=2.0, linear=3.0)


def test_rates_are_those_of_as_many_rows_as_there_are(monkeypatch):
    """Those of MAE's encoder are few; those of MaPeT's more than one rate is measured with."""
    asked = []
    for name in ("_linear", "_states"):
        monkeypatch.setattr(rates, name, lambda width, rows, *_: asked.append(rows) or (lambda: None))
    for rows in (None, 400, 1 << 20):
        rates.measure(64, "float32", torch.device("cpu"), seconds=1e-4, rows=rows)
    assert asked == [2048, 2048, 400, 400, 2048, 2048]
    counts = [
        batch_rows(Case(Recipe(model=Model(name="vit_tiny"), objective=Objective(name=name), optimization=EIGHT)))
        for name in ("mim", "mae")
    ]
    assert counts[0] == 8 * (11 * 197 + 147) // 12
    assert 8 * 50 < counts[1] < 8 * 60


def test_rates_that_cannot_be_read(tmp_path):
    path = tmp_path / "bench.json"
    with pytest.raises(MapetError, match="Cannot read"):
        read_rates(path)
    path.write_text(json.dumps({"rates": [{"speed": 1}]}))
    with pytest.raises(MapetError, match=r"is not a bench\.json"):
        read_rates(path)
    path.write_text(json.dumps({"rates": [vars(UNIT)]}))
    assert read_rates(path) == [UNIT]
