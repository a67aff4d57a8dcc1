"""Two gloo processes under torchrun = one process with the same global batch."""

import csv
import json
import os

import torch
from lightning_fabric import Fabric

from mapet.engine import fit as loop
from mapet.engine.distributed import distributed
from mapet.engine.fit import fit
from mapet.engine.run import Run
from mapet.utils.process_group import first_process
from processes import crowd, finished, under_torchrun
from toy import Numbers, Toy, optim


def losses(run):
    return [float(row["loss"]) for row in csv.DictReader(run.metrics.open())]


def test_two_processes_are_one(tmp_path):
    def work():
        folder, two = tmp_path / "two", Toy()
        run = Run.create(folder) if first_process() else Run(folder)
        two.layers[2].p = 0.0
        with distributed(accelerator="cpu", devices=2) as fabric:
            fit(two, Numbers(rank=fabric.global_rank, world=2), optim(two, clip_grad=1.0), fabric, run)

    code, _, complaint = under_torchrun(tmp_path, work=work)
    assert code == 0, complaint[-2000:]
    toy = Toy()
    toy.layers[2].p = 0.0
    one = Run.create(tmp_path / "one")
    fit(toy, Numbers(), optim(toy, clip_grad=1.0), Fabric(accelerator="cpu", devices=1), one)
    two = losses(Run(tmp_path / "two"))
    assert len(two) == 20
    torch.testing.assert_close(torch.tensor(two), torch.tensor(losses(one)), atol=1e-5, rtol=0)


def test_two_processes_save_together_when_the_last_checkpoint_is_old(tmp_path, monkeypatch):
    """They ask one another every tenth step, and one of them being late is enough."""
    folder, saved = tmp_path / "run", tmp_path / "saved.json"

    def work():
        loop.SAVE_SECONDS = -1.0 if int(os.environ["RANK"]) else 1e9
        run, steps, toy = Run.create(folder) if first_process() else Run(folder), [], Toy()
        save = run.save
        run.save = lambda step, tensors, keep: (steps.append(step), save(step, tensors, keep=keep))
        with distributed(accelerator="cpu", devices=2) as fabric:
            fit(toy, Numbers(rank=fabric.global_rank, world=2), optim(toy), fabric, run, save_every=100)
            if fabric.is_global_zero:
                saved.write_text(json.dumps(steps))

    finished(crowd(tmp_path / "said", 2, work))
    assert json.loads(saved.read_text()) == [10, 20]
