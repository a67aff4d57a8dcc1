"""The loop: interrupted = uninterrupted, split = whole, and no step with numbers that are none."""

import os
import signal
from itertools import count

import pytest
import torch
from lightning_fabric import Fabric

from mapet.engine import fit as loop
from mapet.engine import sharding
from mapet.engine.distributed import Stopped
from mapet.engine.fit import fit
from mapet.engine.optim import Optim, adamw
from mapet.engine.run import Run, load_checkpoint
from mapet.utils.errors import MapetError
from toy import Numbers, Toy, optim


def train(run, numbers=None, toy=None, accumulate=1, save_every=0, **settings):
    toy = toy or Toy()
    fabric = Fabric(accelerator="cpu", devices=1)
    fit(
        toy,
        numbers or Numbers(),
        optim(toy, **settings),
        fabric,
        run,
        seed=7,
        accumulate=accumulate,
        save_every=save_every,
    )
    return toy


def weights(toy):
    return torch.cat([parameter.detach().flatten() for parameter in toy.parameters()])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 4, 5, 6, 13, 20])
def test_interrupted_is_uninterrupted(tmp_path, step, number):
    whole, broken = Run.create(tmp_path / "whole"), Run.create(tmp_path / "broken")
    straight = train(whole, clip_grad=1.0, ema_decay=0.9)
    with pytest.raises(Stopped) as stopped:
        train(broken, Numbers(at=step, call=lambda: os.kill(os.getpid(), number)), clip_grad=1.0, ema_decay=0.9)
    assert (stopped.value.step, stopped.value.number) == (step, number)
    resumed = train(broken, clip_grad=1.0, ema_decay=0.9)
    assert torch.equal(weights(straight), weights(resumed))
    assert whole.metrics.read_bytes() == broken.metrics.read_bytes()
    assert whole.metrics.read_text().count("\n") == 21
    ours, theirs = (sorted(load_checkpoint(run.last)[1].items()) for run in (whole, broken))
    for (a, one), (b, other) in zip(ours, theirs, strict=True):
        assert a == b
        assert torch.equal(one, other)


def test_failed_between_checkpoints_replays_only_what_is_missing(tmp_path):
    def fail():
        raise RuntimeError

    whole, broken = Run.create(tmp_path / "whole"), Run.create(tmp_path / "broken")
    straight = train(whole)
    with pytest.raises(RuntimeError):
        train(broken, Numbers(at=13, call=fail))
    assert load_checkpoint(broken.last)[0] == 10  # the end of epoch 2
    assert broken.metrics.read_text().count("\n") == 13
    assert torch.equal(weights(straight), weights(train(broken)))
    assert whole.metrics.read_bytes() == broken.metrics.read_bytes()


def test_a_finished_run_stays_as_it_is(tmp_path):
    run = Run.create(tmp_path / "run")
    first = weights(train(run))
    before = run.metrics.read_bytes()
    assert torch.equal(first, weights(train(run)))
    assert run.metrics.read_bytes() == before


def test_a_nan_stops_before_the_weights_move(tmp_path):
    run = Run.create(tmp_path / "run")
    toy = Toy()
    with pytest.raises(MapetError, match=r"step 13.*loss nan.*step 10"):
        train(run, Numbers(poison=13), toy=toy)
    assert load_checkpoint(run.last)[0] == 10
    assert torch.isfinite(weights(toy)).all()
    assert run.metrics.read_text().splitlines()[-1].startswith("12,")


@pytest.mark.parametrize("parts", [2, 3, 8, 50])
def test_accumulation_gives_the_same_gradients(tmp_path, parts):
    def without_dropout():
        toy = Toy()
        toy.layers[2].p = 0.0
        return toy

    whole = train(Run.create(tmp_path / "whole"), toy=without_dropout())
    split = train(Run.create(tmp_path / "split"), toy=without_dropout(), accumulate=parts)
    torch.testing.assert_close(weights(whole), weights(split), atol=1e-6, rtol=1e-5)


class Noting(Toy):
    """Notes the images of each forward pass, for an update after the step."""

    def __init__(self):
        super().__init__()
        self.noted = ["before"]

    def forward(self, x, y):
        self.noted.append(len(x))
        return super().forward(x, y)

    def discard_last(self):
        self.noted.pop()


@pytest.mark.parametrize(
    ("images", "parts", "even", "noted"),
    [(3, 2, False, [2, 1]), (3, 5, False, [1] * 3), (3, 5, True, [1] * 3), (0, 1, False, []), (0, 3, True, [])],
)
def test_an_objective_forgets_each_filler_and_nothing_else(images, parts, even, noted):
    toy, fabric = Noting(), Fabric(accelerator="cpu", devices=1)
    batch = {"x": torch.ones(images, 6), "y": torch.ones(images, 1)}
    loop.backward(fabric, fabric.setup_module(toy), batch, parts, even=even)
    assert toy.noted == ["before", *noted]


def test_a_wrapped_objective_forgets_once():
    toy = Noting()
    loop._discard_last(Fabric(accelerator="cpu", devices=1).setup_module(torch.compile(toy)))
    assert toy.noted == []


def test_ema_is_what_its_formula_says_and_is_left_in_the_objective(tmp_path):
    run = Run.create(tmp_path / "run")
    start = weights(Toy())
    toy = train(run, Numbers(steps=1), ema_decay=0.75)
    trained = torch.cat([t.flatten() for n, t in load_checkpoint(run.last)[1].items() if n.startswith("model/")])
    names = [n for n in load_checkpoint(run.last)[1] if n.startswith("model/")]
    order = torch.cat([dict(Toy().named_parameters())[n.removeprefix("model/")].detach().flatten() for n in names])
    assert torch.equal(order.sort().values, start.sort().values)
    mean = torch.cat([dict(toy.named_parameters())[n.removeprefix("model/")].detach().flatten() for n in names])
    torch.testing.assert_close(mean, 0.75 * order + 0.25 * trained)


def test_kept_checkpoints(tmp_path):
    run = Run.create(tmp_path / "run")
    train(run, save_every=8)
    names = sorted(path.name for path in run.last.parent.iterdir())
    assert names == [
        "last.safetensors",
        "previous.safetensors",
        "step-00000008.safetensors",
        "step-00000016.safetensors",
    ]
    assert load_checkpoint(run.last)[0] == 20


def test_a_checkpoint_comes_when_the_last_is_old(tmp_path, monkeypatch):
    run, saved = Run.create(tmp_path / "run"), []
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1.0)
    monkeypatch.setattr(run, "save", lambda step, tensors, keep: saved.append(step))
    train(run, Numbers(steps=6), save_every=100)
    assert saved == [1, 2, 3, 4, 5, 6]


def test_the_time_of_steps_is_that_of_all_parts_and_of_nothing_between(tmp_path, monkeypatch):
    """A clock that ticks once a look: an interrupted run tells about as many ticks as an unbroken one."""
    ticks = count()
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(ticks)))
    whole, broken = Run.create(tmp_path / "whole"), Run.create(tmp_path / "broken")
    assert whole.seconds(7) == 0
    train(whole)
    for steps in (5, 10, 15, 20):
        train(broken, Numbers(steps=steps))
        for _ in range(1000):
            next(ticks)
    assert whole.seconds(20) >= 20
    assert abs(broken.seconds(20) - whole.seconds(20)) < 20
    assert whole.seconds(10) == whole.seconds(20) / 2


def test_a_largest_gradient_is_respected(tmp_path):
    free, bound = Run.create(tmp_path / "free"), Run.create(tmp_path / "bound")
    moved = weights(train(free, Numbers(steps=1))) - weights(Toy())
    clipped = weights(train(bound, Numbers(steps=1), clip_grad=1e-9)) - weights(Toy())
    assert clipped.abs().max() < moved.abs().max()


def test_figures_may_stay_on_the_device_for_some_steps(tmp_path, monkeypatch):
    """As on an accelerator: written late, complete in the end, and never asked for before there are any."""

    class Late(loop.MetricsLogger):
        def __init__(self, *settings):
            super().__init__(*settings)
            self.delay = 10

    whole, late = Run.create(tmp_path / "whole"), Run.create(tmp_path / "late")
    train(whole)
    monkeypatch.setattr(loop, "MetricsLogger", Late)
    monkeypatch.setattr(loop.Meter, "due", lambda *_: True)
    train(late)
    assert late.metrics.read_bytes() == whole.metrics.read_bytes()


def test_each_group_is_trained_at_the_schedules_rate_times_its_scale(tmp_path):
    """Layer-wise decay: a step of AdamW without weight decay moves every weight by its group's rate."""
    toy, before = Toy(), dict(Toy().named_parameters())
    optimizer = adamw(toy, weight_decay=0.0, betas=(0.9, 0.999), scale=lambda name: 0.25 if "0.weight" in name else 1)
    run = Run.create(tmp_path / "run")
    fit(toy, Numbers(steps=1), Optim(optimizer, lambda step: 0.01), Fabric(accelerator="cpu", devices=1), run)
    for name, parameter in toy.named_parameters():
        moved = (parameter - before[name]).abs().max().item()
        assert moved == pytest.approx(0.0025 if "0.weight" in name else 0.01, rel=1e-3)
    assert run.metrics.read_text().splitlines()[1].split(",")[:3] == ["1", "1", "0.01"]  # the schedule's own


def test_a_group_without_a_scale_has_the_schedules_rate(tmp_path):
    toy, before = Toy(), dict(Toy().named_parameters())
    adam = torch.optim.Adam(toy.parameters())
    fabric = Fabric(accelerator="cpu", devices=1)
    fit(toy, Numbers(steps=1), Optim(adam, lambda step: 0.01), fabric, Run.create(tmp_path / "run"))
    for name, parameter in toy.named_parameters():
        assert (parameter - before[name]).abs().max().item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("asked", [False, True])
def test_activations_are_recomputed_only_if_asked(tmp_path, monkeypatch, asked):
    recomputed, toy = [], Toy()
    monkeypatch.setattr(sharding, "recompute", recomputed.append)
    chosen = {"grad_checkpointing": True} if asked else {}
    fabric = Fabric(accelerator="cpu", devices=1)
    fit(toy, Numbers(steps=1), optim(toy), fabric, Run.create(tmp_path / "run"), **chosen)
    assert recomputed == [toy] * asked


def test_by_default_a_step_is_one_pass_and_only_the_last_checkpoints_are_kept(tmp_path):
    run, toy, passes = Run.create(tmp_path / "run"), Toy(), []
    toy.layers.register_forward_hook(lambda *given: passes.append(given))
    fit(toy, Numbers(), optim(toy), Fabric(accelerator="cpu", devices=1), run)
    assert {path.name for path in run.checkpoints.iterdir()} == {"last.safetensors", "previous.safetensors"}
    assert len(passes) == 20


def test_an_attempt_that_ran_out_of_memory_leaves_no_trace():
    weight, draws = torch.nn.Parameter(torch.zeros(3)), []

    def passes(parts):
        draws.append(float(torch.rand(())))
        weight.sum().backward()
        if parts < 4:
            raise torch.OutOfMemoryError
        return {"loss": torch.tensor(parts)}

    torch.manual_seed(7)
    more = iter([2, 4])
    values, parts = loop._fitting(passes, 1, lambda: next(more), torch.optim.SGD([weight]), 7)
    assert (values["loss"], parts) == (4, 4)
    assert weight.grad.tolist() == [1.0] * 3
    assert len(set(draws)) == 1


def test_the_progress_shows_recent_metrics_and_where_the_training_is(tmp_path, monkeypatch):
    shown, run, toy = [], Run.create(tmp_path / "run"), Toy()
    monkeypatch.setattr(loop.Meter, "due", lambda meter, done: done % 10 == 0)
    monkeypatch.setattr(loop.Meter, "update", lambda meter, *given: shown.append(given))
    fabric, describe = Fabric(accelerator="cpu", devices=1), lambda metrics: f"about {metrics['step']:.1f}"
    fit(toy, Numbers(), optim(toy), fabric, run, describe=describe)
    assert [(step, text.partition("  ")[0], where) for step, text, where in shown] == [
        (10, "about 5.5", "epoch 2/4  step 10/20"),
        (20, "about 10.5", "epoch 4/4  step 20/20"),
    ]
    assert all("img/s" in text for _, text, _ in shown)
