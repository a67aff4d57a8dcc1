"""Steps that unreadable images shorten or empty: each readable image counts once, and a step without any is skipped."""

import csv
import os
import signal

import pytest
import torch
from lightning_fabric import Fabric

from mapet.engine.distributed import Stopped, distributed
from mapet.engine.fit import fit
from mapet.engine.run import Run, load_checkpoint
from mapet.utils.process_group import first_process
from processes import crowd, finished
from toy import Numbers, Toy, optim


class Holes(Numbers):
    """Some images of some steps are missing: step → images that are there."""

    def __init__(self, have, **settings):
        super().__init__(**settings)
        self.have = have

    def __call__(self, start):
        rank, world = self.rank, self.world
        part = self.size // world
        whole = Numbers(self.steps, self.size, at=self.at, call=self.call)
        for step, batch in enumerate(whole(start), start + 1):
            kept = [i for i in self.have.get(step, range(self.size)) if rank * part <= i < (rank + 1) * part]
            yield {name: tensor[kept] for name, tensor in batch.items()}


def plain():
    toy = Toy()
    toy.layers[2].p = 0.0
    return toy


def train(run, batches, toy=None, accumulate=1):
    toy = toy or plain()
    chosen = optim(toy, clip_grad=1.0, ema_decay=0.9)
    fit(toy, batches, chosen, Fabric(accelerator="cpu", devices=1), run, accumulate=accumulate)
    return toy


def rows(run):
    return list(csv.DictReader(run.metrics.open()))


def weights(toy):
    return torch.cat([parameter.detach().flatten() for parameter in toy.parameters()])


def test_a_step_without_images_changes_no_weight_and_leaves_an_empty_row(tmp_path, caplog):
    run = Run.create(tmp_path / "run")
    with caplog.at_level("INFO", logger="mapet"):
        toy = train(run, Holes({1: [], 3: [2]}, steps=3))
    first, _, _ = found = rows(run)
    assert [row["step"] for row in found] == ["1", "2", "3"]
    assert (first["loss"], first["error"], first["grad_norm"]) == ("", "", "")
    assert float(first["lr"]) == pytest.approx(1e-5)
    assert all(float(row["loss"]) > 0 for row in found[1:])
    assert "skipped   1 steps, none of whose images could be read" in caplog.text
    moved = weights(toy)
    untouched = weights(train(Run.create(tmp_path / "none"), Holes({1: [], 2: [], 3: []}, steps=3)))
    assert torch.equal(untouched, weights(plain()))
    assert not torch.equal(moved, untouched)


@pytest.mark.parametrize("step", [1, 2, 6, 7, 20])
def test_interrupted_is_uninterrupted_with_skipped_steps(tmp_path, step):
    have = {1: [], 2: [], 7: [], 8: [0], 20: []}
    whole, broken = Run.create(tmp_path / "whole"), Run.create(tmp_path / "broken")
    straight = train(whole, Holes(have), Toy())
    with pytest.raises(Stopped):
        train(broken, Holes(have, at=step, call=lambda: os.kill(os.getpid(), signal.SIGTERM)), Toy())
    resumed = train(broken, Holes(have), Toy())
    assert torch.equal(weights(straight), weights(resumed))
    assert whole.metrics.read_bytes() == broken.metrics.read_bytes()
    assert [int(row["step"]) for row in rows(whole)] == [*range(1, 21)]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("parts", [1, 2])
def test_two_processes_with_unequal_numbers_of_images_are_one(tmp_path, parts, strategy):
    """Also when a process has no image at all, or when none has."""
    have = {1: [], 2: [6, 7], 4: [0], 5: [0, 1, 2, 4, 5, 6, 7], 9: [], 10: [0, 4, 5, 6, 7], 20: [1, 2, 3]}
    folder = tmp_path / "two"

    def work():
        run, toy = Run.create(folder) if first_process() else Run(folder), plain()
        with distributed(accelerator="cpu", devices=2, strategy=strategy) as fabric:
            chosen = optim(toy, clip_grad=1.0, ema_decay=0.9)
            fit(toy, Holes(have, rank=fabric.global_rank, world=2), chosen, fabric, run, accumulate=parts)
            if fabric.is_global_zero:
                torch.save(weights(toy), tmp_path / "weights.pt")

    finished(crowd(tmp_path / "said", 2, work))
    one = Run.create(tmp_path / "one")
    toy = train(one, Holes(have), accumulate=parts)
    assert [row["loss"] == "" for row in rows(one)] == [step in (1, 9) for step in range(1, 21)]
    for name in ("loss", "error", "grad_norm"):
        two, alone = ([float(row[name] or 0) for row in rows(run)] for run in (Run(folder), one))
        # "error" is a root: the mean of two parts' roots is not the root of all
        tolerance = 0.05 if name == "error" else 1e-5
        torch.testing.assert_close(torch.tensor(two), torch.tensor(alone), atol=tolerance, rtol=0)
    torch.testing.assert_close(torch.load(tmp_path / "weights.pt"), weights(toy), atol=1e-5, rtol=0)
    assert load_checkpoint(Run(folder).last)[0] == 20
