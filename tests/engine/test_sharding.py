"""Weights spread over 2 and 4 gloo processes: the losses of one, checkpoints that any number of processes reads."""

import csv
import json
import logging
import os
import shutil
import signal
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed.fsdp  # once, and not in every forked process
from lightning_fabric import Fabric

from mapet.build.pretrain import build_objective, load_run_encoder
from mapet.config.recipe import Model, Objective, Recipe, save
from mapet.engine import checkpoint as files
from mapet.engine import saving, sharding
from mapet.engine.distributed import distributed
from mapet.engine.fit import fit
from mapet.engine.generations import SHARDED
from mapet.engine.origin import metrics_seal
from mapet.engine.run import Run, load_checkpoint
from mapet.engine.saving import save_parts
from mapet.engine.sharding import _broadcast, local_shards, set_up
from mapet.method.order import uniform
from mapet.utils.errors import MapetError
from mapet.utils.rng import random_bits
from mapet.utils.rng import uniform as random_uniform
from processes import crowd, finished
from toy import optim

MODEL = Model(
    name="custom", embed_dim=12, depth=2, num_heads=2, image_size=8, patch_size=2, drop_path=0.2, init_values=0.5
)
RECIPE = Recipe(data="none", model=MODEL)
OTHERS = {
    objective.name: replace(RECIPE, objective=objective, model=replace(MODEL, depth=3))
    for objective in (
        Objective(name="mae", decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=2),
        Objective(name="cae", regressor_depth=2, decoder_depth=1),
        Objective(name="pet", cls_layer=1, groups=3),
    )
}
VOCABULARY, BATCH, STEPS = 11, 8, 20


class Chance:
    """Random images and tokens, a pure function of the step; each process has its part."""

    steps_per_epoch = 5

    def __init__(self, recipe=RECIPE, steps=STEPS, rank=0, world=1):
        self.recipe, self.steps, self.rank, self.world = recipe, steps, rank, world

    def __call__(self, start):
        for step in range(start, self.steps):
            index = torch.arange(BATCH).tensor_split(self.world)[self.rank]
            at = index[:, None]
            images = random_uniform(1, step, at, torch.arange(3 * 8 * 8)).float().view(-1, 3, 8, 8)
            tokens = random_bits(2, step, at, torch.arange(16)) % VOCABULARY
            order = uniform(self.recipe.grid, self.recipe.num_masked, 0, step, index)
            yield {"images": images, "tokens": tokens, "order": order, "seed": random_bits(3, step, index)}


class Few(Chance):
    """Of the first process's share one image alone could be read."""

    def __call__(self, start):
        for batch in super().__call__(start):
            yield {name: tensor[: None if self.rank else 1] for name, tensor in batch.items()}


def train(fabric, folder, recipe=RECIPE, steps=STEPS, parts=1, stream=Chance, compiled=False):
    """20 steps, or as far as ``steps``, by all processes of ``fabric``; the trained objective."""
    run = Run(folder)
    if fabric.is_global_zero and not run.recipe.is_file():
        save(recipe, Run.create(folder).recipe)
    fabric.barrier()
    objective = build_objective(recipe, VOCABULARY)
    chosen = optim(objective, STEPS, clip_grad=1.0, ema_decay=0.9)
    batches = stream(recipe, steps, fabric.global_rank, fabric.world_size)
    fit(objective, batches, chosen, fabric, run, accumulate=parts, save_every=10, compiled=compiled)
    return objective


def alone():
    return Fabric(accelerator="cpu", devices=1)


def half(whole, folder):
    """The run as a kill at step 13 leaves it: its last checkpoint is of step 10."""
    shutil.copytree(whole, folder)
    files.remove(Run(folder).last)
    (kept,) = Run(folder).checkpoints.glob("step-00000010*")
    kept.rename(kept.with_name(kept.name.replace("step-00000010", "last")))
    lines = Run(folder).metrics.read_text().splitlines(keepends=True)
    Run(folder).metrics.write_text("".join(lines[:14]))


def together(count, strategy="fsdp", precision="float32"):
    return distributed(accelerator="cpu", devices=count, strategy=strategy, precision=precision)


def column(folder, name="loss"):
    return torch.tensor([float(row[name]) for row in csv.DictReader(Run(folder).metrics.open())])


def assert_same_losses(one, other):
    assert len(column(other)) == STEPS
    for name in ("loss", "accuracy", "grad_norm"):
        torch.testing.assert_close(column(one, name), column(other, name), atol=1e-5, rtol=0)


def state(folder):
    return load_checkpoint(Run(folder).last)[1]


def assert_same_bits(one, other):
    ours, theirs = state(one), state(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    train(alone(), folder / "whole")
    half(folder / "whole", folder / "half")
    for name, recipe in OTHERS.items():
        train(alone(), folder / name, recipe, steps=1)
    return folder


@pytest.fixture(scope="module")
def two(one, tmp_path_factory):
    """All that two processes are asked to do, under one launch."""
    folder = tmp_path_factory.mktemp("two")
    shutil.copytree(one / "half", folder / "plain")

    def work():
        with together(2) as fabric:
            objective = train(fabric, folder / "whole")
            if fabric.is_global_zero:
                torch.save(objective.state_dict(), folder / "objective.pth")
            if fabric.is_global_zero:
                half(folder / "whole", folder / "half")
                shutil.copytree(folder / "half", folder / "same")
            fabric.barrier()
            train(fabric, folder / "same")
            train(fabric, folder / "plain", parts=3)
            train(fabric, folder / "few", steps=3, parts=3, stream=Few)
            with patch.object(torch, "compile", partial(torch.compile, backend="eager")):
                train(fabric, folder / "compiled", steps=3, compiled=True)
            for name, recipe in OTHERS.items():
                train(fabric, folder / name, recipe, steps=1)

    finished(crowd(folder / "said", 2, work))
    return folder


def test_two_sharded_processes_are_one(one, two):
    assert_same_losses(one / "whole", two / "whole")
    ours, theirs = state(one / "whole"), state(two / "whole")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        torch.testing.assert_close(tensor, theirs[name], atol=1e-4, rtol=0)


@pytest.mark.parametrize("other", OTHERS)
def test_every_objective_can_be_sharded(one, two, other):
    for name in ("loss", "grad_norm"):
        torch.testing.assert_close(column(one / other, name), column(two / other, name), atol=1e-5, rtol=1e-5)


def test_each_process_writes_its_rows_and_the_index_names_them(two):
    checkpoints = two / "whole" / "checkpoints"
    assert {path.name for path in checkpoints.iterdir()} == {"last", "step-00000010", "step-00000020"}
    parts = ["00000020-00000-of-00002.safetensors", "00000020-00001-of-00002.safetensors"]
    before = [part.replace("20-", "10-", 1) for part in parts]
    assert sorted(path.name for path in (checkpoints / "last").iterdir()) == [
        *before,
        *parts,
        "index.json",
        "previous.json",
    ]
    first, second = (files.safe_open(checkpoints / "last" / part, "pt") for part in parts)
    for name in ("model/head.weight", "ema/head.weight"):
        assert (first.get_slice(name).get_shape()[0], second.get_slice(name).get_shape()[0]) == (6, 5)
    assert sum(name.endswith("exp_avg") for name in second.keys()) > 20  # noqa: SIM118
    assert load_checkpoint(checkpoints / "step-00000010")[0] == 10


def test_the_objective_is_whole_in_the_end_and_loads_like_any_other(two):
    """With a moving average, which is what an encoder is loaded with."""
    trained = torch.load(two / "objective.pth", weights_only=True)
    encoder, _, step = load_run_encoder(two / "whole")
    assert step == 20
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, trained[f"encoder.{name}"])


def test_saved_and_loaded_by_as_many_is_bit_equal(two):
    assert_same_bits(two / "whole", two / "same")
    assert (two / "whole" / "metrics.csv").read_bytes() == (two / "same" / "metrics.csv").read_bytes()


def test_one_file_is_gone_on_with_by_two_processes(one, two):
    """Each of which cuts its share of 4 into 2, 1 and 1."""
    assert_same_losses(one / "whole", two / "plain")
    assert load_checkpoint(two / "plain" / "checkpoints" / "last.safetensors")[0] == 10, "the one before"


def test_two_parts_are_gone_on_with_by_one_process(one, two, tmp_path):
    run = shutil.copytree(two / "half", tmp_path / "run")
    train(alone(), run)
    assert_same_losses(one / "whole", run)
    assert Run(run).last.name == "last.safetensors"
    assert load_checkpoint(run / "checkpoints" / "last")[0] == 10, "the one before"
    for _ in range(2):
        Run(run).save(21, state(run))
    assert not (run / "checkpoints" / "last").exists()


def test_two_parts_are_gone_on_with_by_four_processes(one, two, tmp_path):
    """On two nodes, each share of 2 cut into parts of 1; and they train from the start."""
    run = shutil.copytree(two / "half", tmp_path / "run")

    def work():
        with distributed(accelerator="cpu", devices=2, num_nodes=2, strategy="fsdp") as fabric:
            train(fabric, run, parts=2)
            train(fabric, tmp_path / "whole")

    finished(crowd(tmp_path / "said", 4, work, nodes=2))
    assert_same_losses(one / "whole", run)
    assert_same_losses(one / "whole", tmp_path / "whole")
    assert len(list(Run(run).last.iterdir())) == 4 + 2 + 2, "files of four and of two processes, and two indices"


@pytest.fixture(scope="module")
def ddp(two, tmp_path_factory):
    """What two processes are asked to do with whole weights each."""
    folder = tmp_path_factory.mktemp("ddp")
    shutil.copytree(two / "half", folder / "half")

    def work():
        with together(2, "ddp") as fabric:
            train(fabric, folder / "half")
            train(fabric, folder / "few", steps=3, parts=3, stream=Few)
            with patch.object(torch, "compile", partial(torch.compile, backend="aot_eager")):
                train(fabric, folder / "compiled", steps=3, compiled=True)

    finished(crowd(folder / "said", 2, work))
    return folder


def test_two_parts_are_gone_on_with_under_ddp(one, ddp):
    assert_same_losses(one / "whole", ddp / "half")


def test_a_process_without_a_picture_for_a_part_still_takes_its_turn(two, ddp):
    """One image in three parts: under ddp a single pass, under fsdp three, as the weights are gathered together."""
    for name in ("loss", "accuracy", "grad_norm"):
        torch.testing.assert_close(column(ddp / "few", name), column(two / "few", name), atol=1e-5, rtol=0)


def test_shared_and_compiled(one, two, ddp):
    for folder, name in product((two, ddp), ("loss", "grad_norm")):
        torch.testing.assert_close(
            column(one / "whole", name)[:3], column(folder / "compiled", name), atol=1e-5, rtol=0
        )


def test_bfloat16_means_the_same_under_both_strategies(tmp_path):
    """Products in bfloat16; weights, their averages and what is reduced in float32."""

    def work(strategy):
        with together(2, strategy, "bfloat16") as fabric:
            train(fabric, tmp_path / strategy, steps=3)

    for strategy in ("ddp", "fsdp"):
        finished(crowd(tmp_path / f"{strategy}-said", 2, partial(work, strategy)))
    torch.testing.assert_close(column(tmp_path / "ddp"), column(tmp_path / "fsdp"), atol=1e-5, rtol=0)
    assert all(tensor.dtype == torch.float32 for tensor in state(tmp_path / "fsdp").values())


def test_killed_between_two_parts_the_checkpoint_before_is_there(one, two, tmp_path):
    """The first process has written its part of step 20 when SIGKILL comes to the second."""
    run = shutil.copytree(two / "half", tmp_path / "run")

    def work():
        with together(2) as fabric:
            if fabric.global_rank:
                files.save_file = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            train(fabric, run)

    survivor, killed = crowd(tmp_path / "said", 2, work)
    assert killed.wait()[0] == -signal.SIGKILL
    assert survivor.wait()[0] == 1
    assert (run / "checkpoints" / "last" / "00000020-00000-of-00002.safetensors").exists()
    assert Run(run).completed == 10
    assert_same_bits(two / "half", run)
    train(alone(), run)
    assert_same_losses(one / "whole", run)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
def test_rows_are_read_across_parts(tmp_path, count):
    """Whatever way a tensor was cut, any rows of it are those of the whole."""
    tensors = {"a": torch.randn(7, 3), "b": torch.arange(2), "c": torch.tensor(5.0)}
    for rank in reversed(range(count)):
        own = {name: t.tensor_split(count)[rank] for name, t in tensors.items() if t.ndim}
        own |= {} if rank else {"c": tensors["c"]}
        files.write_parts(tmp_path, 3, own, rank=rank, count=count, barrier=lambda: None)
    found = files.Checkpoint(tmp_path)
    assert (found.step, found.shapes) == (3, {"a": (7, 3), "b": (2,), "c": ()})
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in found.read_all().items())
    for start in range(8):
        for stop in range(start, 8):
            assert torch.equal(found.read("a", start, stop), tensors["a"][start:stop])


def test_an_incomplete_folder_is_refused(two, tmp_path):

    last = shutil.copytree(Run(two / "half").last, tmp_path / "last")
    (last / "00000010-00001-of-00002.safetensors").unlink()
    with pytest.raises(MapetError, match="not a readable checkpoint"):
        files.Checkpoint(last)
    (last / "index.json").write_text("{}")
    with pytest.raises(MapetError, match="not a readable checkpoint"):
        files.Checkpoint(last)
    (last / "index.json").unlink()
    assert not files.exists(last)


def test_a_damaged_part_gives_way_to_the_checkpoint_before_under_two_processes(two, tmp_path, caplog):
    run = shutil.copytree(two / "whole", tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "step-00000020")
    part = run / "checkpoints" / "last" / "00000020-00001-of-00002.safetensors"
    content = bytearray(part.read_bytes())
    content[-5] ^= 2
    part.write_bytes(bytes(content))
    with caplog.at_level(logging.INFO, "mapet"):
        assert Run(run).completed == 10
    assert "last is damaged: last/previous.json of step 10 is used instead" in caplog.text

    def work():
        with together(2) as fabric:
            train(fabric, run)

    finished(crowd(tmp_path / "said", 2, work))
    assert_same_bits(two / "whole", run)
    assert (two / "whole" / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()
    assert load_checkpoint(run / "checkpoints" / "last" / "previous.json")[0] == 10, (
        "the damaged one did not replace it"
    )


def test_one_of_two_generations_is_always_whole_whenever_a_kill_comes(two, tmp_path, monkeypatch):
    """Rank 1 has written its part; rank 0 is stopped before any of its changes to the folder."""
    tensors = {"x": torch.arange(4.0)}

    def save(folder, step):
        for rank in (1, 0):
            files.write_parts(folder, step, tensors, rank=rank, count=2, barrier=lambda: None)

    for number in range(1, 12):
        folder = tmp_path / str(number)
        for step in (1, 2):
            save(folder, step)
        calls = iter(range(1, 100))

        def stopped(act, calls=calls, number=number):
            def acting(*given, **named):
                if next(calls) == number:
                    raise KeyboardInterrupt
                return act(*given, **named)

            return acting

        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            for owner, name in ((files.os, "replace"), (Path, "replace"), (Path, "unlink")):
                patch.setattr(owner, name, stopped(getattr(owner, name)))
            save(folder, 3)
        assert files.Checkpoint(folder).step in (2, 3)
        assert files.Checkpoint(folder).verify()
        assert files.Checkpoint(folder / "previous.json").verify()
        save(folder, 4)
        assert sorted(path.name[:8] for path in folder.glob("*.safetensors")) == [
            *["00000002" if files.Checkpoint(folder / "previous.json").step == 2 else "00000003"] * 2,
            *["00000004"] * 2,
        ]


def test_weights_and_buffers_are_those_of_the_first_process(monkeypatch):
    module = torch.nn.BatchNorm1d(3)
    sent = []
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, source: sent.append(source) or tensor.fill_(7))
    _broadcast(module, Fabric(accelerator="cpu", devices=1))
    assert sent == [0] * 5
    assert all((tensor == 7).all() for tensor in (*module.parameters(), *module.buffers()))


def test_nothing_is_recomputed_or_compiled_unless_asked(monkeypatch):
    monkeypatch.setattr(sharding, "recompute", None)
    monkeypatch.setattr(torch, "compile", None)
    module = torch.nn.Linear(3, 2)
    trained, _, _ = set_up(Fabric(accelerator="cpu", devices=1), module, torch.optim.SGD(module.parameters()))
    assert trained is module


def test_a_whole_tensor_belongs_to_the_first_process():
    weight = torch.ones(3)
    assert local_shards({"weight": weight}, 0) == {"weight": weight}
    assert local_shards({"weight": weight}, 1) == {}


def test_each_part_tells_the_settings_and_the_first_one_the_metrics(tmp_path):
    run = Run.create(tmp_path / "run")
    run.recipe.write_text("seed: 3\n")
    run.append_metrics([{"step": 1, "loss": 0.5}])
    for rank in (1, 0):
        save_parts(run.folder, 1, {"x": torch.ones(2)}, rank=rank, count=2, barrier=lambda: None, keep=False)
    checkpoint = files.Checkpoint(run.checkpoints / SHARDED)
    assert checkpoint.settings == {"recipe.yaml: seed": 3}
    assert checkpoint.metrics == metrics_seal(run.folder)


def test_metrics_are_on_the_disk_before_the_first_part_which_alone_has_their_seal(tmp_path, monkeypatch):
    run, synced = Run.create(tmp_path / "run"), []
    run.recipe.write_text("seed: 3\n")
    run.append_metrics([{"step": 1, "loss": 0.5}])
    monkeypatch.setattr(saving, "_sync_metrics", lambda folder: synced.append(folder))
    written = []
    monkeypatch.setattr(saving, "write_parts", lambda *_, rank, about, **__: written.append((rank, json.loads(about))))
    monkeypatch.setattr(saving, "trust", lambda _: None)
    for rank in (1, 0):
        assert synced == []
        save_parts(run.folder, 1, {}, rank=rank, count=2, barrier=lambda: None, keep=False)
    assert synced == [run.folder]
    run.save(1, {"x": torch.ones(2)})
    assert synced == [run.folder] * 2
    assert [(rank, about["metrics"]) for rank, about in written] == [(1, ""), (0, metrics_seal(run.folder))]


@pytest.mark.parametrize("earlier", ["none", "valid", "damaged"])
def test_an_earlier_checkpoint_is_kept_by_the_first_process_if_it_is_valid(tmp_path, monkeypatch, earlier):
    run, kept = Run.create(tmp_path / "run"), {}
    if earlier != "none":
        save_parts(run.folder, 1, {"x": torch.ones(2)}, rank=0, count=1, barrier=lambda: None, keep=False)
    if earlier == "damaged":
        (part,) = (run.checkpoints / SHARDED).glob("*.safetensors")
        part.write_bytes(part.read_bytes()[:-3])
    monkeypatch.setattr(saving, "write_parts", lambda *_, rank, keep_earlier, **__: kept.update({rank: keep_earlier}))
    monkeypatch.setattr(saving, "trust", lambda _: None)
    for rank in (1, 0):
        save_parts(run.folder, 2, {}, rank=rank, count=2, barrier=lambda: None, keep=False)
    assert kept == {1: False, 0: earlier == "valid"}


def test_a_part_is_on_the_disk_before_the_others_are_waited_for(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(files, "sync", lambda path: done.append(path.name))
    for rank in (1, 0):
        done.clear()
        files.write_parts(
            tmp_path / "last", 1, {"x": torch.ones(2)}, rank=rank, count=2, barrier=lambda: done.append("barrier")
        )
        assert done.index("last") < done.index("barrier")
