import dataclasses
import math

import pytest
import torch
from torch import nn

from mapet.engine.optim import Schedule, adamw, cosine, initial_share, layer_scale, poly, scheduled
from mapet.method.encoder import Classifier, Encoder
from mapet.method.pattern import mapet
from mapet.method.predict import TokenPrediction
from toy import Numbers


def test_cosine_touches_its_four_values():
    lr = cosine(peak=1.0, floor=0.1, start=0.01, warmup=10, total=101)
    assert lr(0) == pytest.approx(0.01)
    assert lr(5) == pytest.approx((0.01 + 1.0) / 2)
    assert lr(10) == pytest.approx(1.0)
    assert lr(55) == pytest.approx(0.55)
    assert lr(100) == pytest.approx(0.1)
    assert all(lr(a) <= lr(a + 1) for a in range(10))
    assert all(lr(a) >= lr(a + 1) for a in range(10, 100))


@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (1, 1), (5, 5), (0, 2)])
def test_short_runs_have_a_finite_rate(warmup, total):
    lr = cosine(peak=1.0, floor=0.1, start=0.01, warmup=warmup, total=total)
    assert all(math.isfinite(lr(step)) and lr(step) > 0 for step in range(total))


def rates(epochs, **settings):
    """A schedule of ``epochs`` of 5 steps, and its rates."""
    defaults = {"peak": 1e-3, "floor": 1e-5, "start": 1e-6, "warmup_epochs": 1}
    found = scheduled(Numbers(steps=5 * epochs), **defaults | settings)
    return found, [found(step) for step in range(5 * epochs)]


def test_a_sane_schedule_is_the_plain_cosine():
    found, values = rates(8)
    lr = cosine(peak=1e-3, floor=1e-5, start=1e-6, warmup=5, total=40)
    assert values == [lr(step) for step in range(40)]
    assert not found.notes
    assert str(found) == "warm-up 5 steps to 1.00e-03, cosine to 1.00e-05 at step 40"


def test_the_floor_is_at_most_the_peak():
    found, values = rates(8, peak=5.9e-6)
    assert max(values) == values[-1] == pytest.approx(5.9e-6)
    assert found.notes == ("--min-lr 1.00e-05 is above the peak 5.90e-06: the rate does not decay; lower --min-lr",)
    assert not rates(8, peak=1e-5)[0].notes  # a constant rate is not above its peak
    assert all(value == 5e-7 for value in rates(8, peak=5e-7)[1])  # the warm-up does not begin above the peak


@pytest.mark.parametrize(("epochs", "warmup_epochs", "steps"), [(8, 10, 4), (8, 8, 4), (1, 10, 1), (1, 1, 1)])
def test_a_warm_up_is_shorter_than_the_run(epochs, warmup_epochs, steps):
    found, values = rates(epochs, warmup_epochs=warmup_epochs)
    assert values.index(max(values)) == steps
    assert max(values) == pytest.approx(1e-3)
    assert values[-1] == pytest.approx(1e-5)
    assert found.notes == (
        f"--warmup-epochs {warmup_epochs} is not shorter than the run: "
        f"it is shortened to {steps} of {5 * epochs} steps",
    )


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs_reach_their_peak(steps):
    found = scheduled(Numbers(steps=steps), peak=1e-3, floor=1e-5, start=1e-6, warmup_epochs=10)
    assert max(map(found, range(steps))) == 1e-3
    assert str(found).startswith("warm-up 1 step to" if steps > 1 else "1.00e-03, cosine to")


def test_a_moving_average_that_holds_initial_weights_is_named():
    assert "93% of the initial weights" in initial_share(0.9999, 750)
    assert initial_share(0.9999, 50_000) is None
    assert initial_share(None, 1) is None


def test_weight_decay_follows_the_published_rule():
    """Vectors, pos_embed and cls_token are spared; the mask vector (1, 1, D) is not."""
    objective = TokenPrediction(Encoder(8, 4, embed_dim=8, depth=1, num_heads=2, init_values=0.1), mapet(4, 3), 5)
    optimizer = adamw(objective, weight_decay=0.05, betas=(0.9, 0.999), no_decay=("pos_embed", "cls_token"))
    name_of = {id(parameter): name for name, parameter in objective.named_parameters()}
    decays = {name_of[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays.keys() == set(name_of.values())
    spared = {name for name, decay in decays.items() if not decay}
    assert "mask_token" not in spared
    assert {"encoder.pos_embed", "encoder.cls_token", "encoder.blocks.0.ls1.gamma", "head.bias"} <= spared
    assert {name for name in decays if name.endswith("weight") and "norm" not in name}.isdisjoint(spared)


def test_fixed_positions_are_not_optimised():
    encoder = Encoder(8, 4, embed_dim=8, depth=1, num_heads=2, pos_embed="sincos")
    optimizer = adamw(encoder, weight_decay=0.05, betas=(0.9, 0.999))
    assert all(p is not encoder.pos_embed for group in optimizer.param_groups for p in group["params"])


def test_one_step_moves_by_the_learning_rate():
    layer = nn.Linear(1, 1, bias=False)
    optimizer = adamw(layer, weight_decay=0.0, betas=(0.9, 0.999))
    optimizer.param_groups[0]["lr"] = 0.5
    before = layer.weight.item()
    (3 * layer(torch.ones(1, 1))).sum().backward()
    optimizer.step()
    assert layer.weight.item() == pytest.approx(before - 0.5, abs=1e-5)


def test_nothing_moves_before_a_schedule_gives_a_rate():
    """So a step that is only measured trains nothing."""
    layer = nn.Linear(2, 2)
    optimizer = adamw(layer, weight_decay=0.5, betas=(0.9, 0.999))
    before = [parameter.clone() for parameter in layer.parameters()]
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert all(map(torch.equal, layer.parameters(), before))


def test_layer_decay_and_weight_decay_are_timms():
    """Every parameter has the rate and the decay that timm's own rule gives timm's own transformer."""
    from timm.models.vision_transformer import VisionTransformer
    from timm.optim import param_groups_layer_decay

    size = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 3, "num_heads": 2, "init_values": 0.1}
    size |= {"global_pool": "avg", "num_classes": 5}
    theirs, ours = VisionTransformer(**size), Classifier(**size)
    groups = param_groups_layer_decay(theirs, 0.05, ["pos_embed", "cls_token"], layer_decay=0.7)
    optimizer = adamw(
        ours, weight_decay=0.05, betas=(0.9, 0.999), no_decay=("pos_embed", "cls_token"), scale=layer_scale(3, 0.7)
    )
    found, expected = by_name(ours, optimizer.param_groups), by_name(theirs, groups)
    assert found.keys() == expected.keys()
    assert all(found[name] == pytest.approx(pair) for name, pair in expected.items())
    assert found["pos_embed"] == (pytest.approx(0.7**4), 0.0)


def by_name(module, groups):
    """Factor of the learning rate and weight decay by the parameter's name."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_a_wrapped_encoder_has_the_same_scales():
    scale = layer_scale(3, 0.5)
    names = ("patch_embed.proj.weight", "blocks.0.ls1.gamma", "blocks.2.mlp.fc1.bias", "fc_norm.weight", "head.bias")
    expected = [1 / 16, 1 / 8, 1 / 2, 1, 1]
    assert [scale(f"classifier.{name}") for name in names] == [scale(name) for name in names] == expected


def test_a_polynomial_schedule():
    """floor + (peak − floor) · (1 − share)^power, as mmsegmentation's."""
    lr = poly(peak=1.0, floor=0.1, start=0.01, warmup=10, total=111, power=2.0)
    assert [lr(step) for step in (0, 5, 10)] == pytest.approx([0.01, 0.505, 1.0])
    assert [lr(step) for step in (35, 60, 110, 200)] == pytest.approx([0.1 + 0.9 * s**2 for s in (0.75, 0.5, 0, 0)])


def test_the_last_step_has_the_floor_however_short_the_decay():
    settings = {"peak": 1.0, "floor": 0.1, "start": 0.01, "total": 10}
    for warmup in (8, 5, 0):
        assert cosine(warmup=warmup, **settings)(9) == pytest.approx(0.1)
        assert poly(warmup=warmup, power=0.9, **settings)(9) == pytest.approx(0.1)
        assert poly(warmup=warmup, power=0.9, **settings)(warmup) == pytest.approx(1.0)


def test_a_schedule_is_a_value():
    schedule = Schedule(peak=1.0, floor=0.1, start=0.0, warmup=1, total=9)
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.peak = 2.0
    assert {schedule: 1}[dataclasses.replace(schedule)] == 1
