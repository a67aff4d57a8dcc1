"""Who started this process, and how many of it there are: torchrun, srun, or nobody."""

import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from importlib.metadata import version
from types import SimpleNamespace

import pytest
import torch
from lightning_fabric.plugins.environments import TorchElasticEnvironment

from mapet.api import pack
from mapet.engine import distributed
from mapet.engine.distributed import (
    SYNC_EVERY,
    _environment,
    _leave,
    all_reduce_max,
    cores,
    image_weight,
    init_fabric,
    interruptible,
    pick_workers,
    process_group,
)
from mapet.utils.errors import MapetError
from mapet.utils.process_group import Launched, first_process, launched

STEP = {"STEP_NUM_TASKS": "4", "NTASKS": "4", "NTASKS_PER_NODE": "2", "NNODES": "2", "PROCID": "3", "LOCALID": "1"}
STEP |= {"NODEID": "1", "JOB_ID": "7", "NODELIST": "n[1-2]"}


@pytest.fixture
def slurm(monkeypatch):
    """Sets the variables that srun gives a task, changed or left out (None) as asked."""

    def set_up(**changes):
        for name, value in {**STEP, **changes}.items():
            if value is not None:
                monkeypatch.setenv(f"SLURM_{name}", value)

    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return set_up


def test_nobody_started_this_process(slurm):
    assert launched() == Launched(1, 0, 0)
    assert first_process()


def test_a_task_of_srun(slurm):
    slurm()
    assert launched() == Launched(4, 3, 1)
    assert not first_process()


def test_torchrun_inside_a_task_of_srun(slurm, monkeypatch):
    slurm()
    for name, value in {"WORLD_SIZE": "8", "RANK": "5", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    assert launched() == Launched(8, 5, 2)


@pytest.mark.parametrize("rank", [None, "0"])
def test_a_shell_in_an_allocation_is_one_process(slurm, rank):
    """salloc, or a batch script, without srun: as many tasks as asked for, and one process."""
    slurm(STEP_NUM_TASKS=None, NTASKS_PER_NODE=None, PROCID=rank, LOCALID=rank, NODEID=rank)
    assert init_fabric(accelerator="cpu").world_size == 1
    assert first_process()
    with process_group("cpu") as alone:
        assert (alone.rank, alone.count) == (0, 1)


def test_two_processes_of_a_batch_script_without_srun(tmp_path):
    """The second is started by Fabric and sees the script's variables: it must not take itself for a task of srun."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from mapet.engine.distributed import distributed\n"
        "with distributed(accelerator='cpu', devices=2) as fabric:\n"
        "    print(fabric.all_gather(fabric.global_rank).tolist(), flush=True)\n"
        "assert 'torchmetrics' not in sys.modules, 'it takes seconds and no training needs it'\n"
    )
    batch = {f"SLURM_{name}": value for name, value in {**STEP, "NTASKS": "2", "JOB_NAME": "train"}.items()}
    alone = {name: value for name, value in batch.items() if name not in ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID")}
    environment = {**os.environ, **alone, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("[0, 1]") == 2


@pytest.mark.parametrize(
    ("changes", "devices", "nodes", "said"),
    [
        ({}, 1, 1, "started 4 processes, but devices 1 × num_nodes 1 = 1"),
        ({}, 4, 1, "2 nodes with 2 processes each, but num_nodes is 1 and devices 4"),
        ({"NTASKS_PER_NODE": None}, 2, 2, "srun --ntasks-per-node"),
        ({"NNODES": "4"}, 2, 2, "4 nodes"),
    ],
)
def test_numbers_that_do_not_fit_are_one_line(slurm, changes, devices, nodes, said):
    slurm(**changes)
    with pytest.raises(MapetError, match=said) as refused:
        init_fabric(accelerator="cpu", devices=devices, num_nodes=nodes)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("given", "workers"), [(1, 1), (3, 3), (40, 8)])
def test_as_many_workers_as_cores_that_may_be_used(given, workers, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 192)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(given), raising=False)
    assert pick_workers(None, torch.device("cuda")) == workers
    assert pick_workers(None, torch.device("mps")) == min(workers, 4)
    assert pick_workers(None, torch.device("cpu")) == 0
    assert pack._workers() == (given if given > 1 else 0)


@pytest.mark.parametrize(
    ("started", "torchrun", "found"),
    [
        ({"WORLD_SIZE": "2"}, False, None),  # by anything else: left to Fabric
        ({"WORLD_SIZE": "2", "SLURM_NTASKS": "1"}, False, ["LightningEnvironment"]),  # by Fabric in a batch script
        ({"WORLD_SIZE": "2", "SLURM_NTASKS": "1"}, True, None),
        ({}, False, ["LightningEnvironment"]),
    ],
)
def test_who_started_the_processes(monkeypatch, started, torchrun, found):
    for name in ("WORLD_SIZE", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(TorchElasticEnvironment, "detect", lambda: torchrun)
    environments = _environment()
    assert (environments and [type(one).__name__ for one in environments]) == found


def test_a_task_of_srun_has_its_environment(slurm):
    slurm()
    (environment,) = _environment(2, 2)
    assert type(environment).__name__ == "SLURMEnvironment"
    for devices, nodes in ((4, 1), (2, 1), (1, 4)):
        with pytest.raises(MapetError, match="SLURM has 2 nodes with 2 processes each"):
            _environment(devices, nodes)


def test_cores_are_those_of_this_process(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0: {3, 5, 6}}[process], raising=False)
    assert cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert cores() == 7


@pytest.fixture
def reduced(monkeypatch):
    """Takes what the other process gives to ``all_reduce``, which then adds it or takes the maximum."""

    def other_gives(*numbers):
        def all_reduce(tensor, how=torch.distributed.ReduceOp.SUM):
            theirs = torch.tensor(numbers, dtype=tensor.dtype).view_as(tensor)
            both = {torch.distributed.ReduceOp.SUM: torch.add, torch.distributed.ReduceOp.MAX: torch.maximum}
            tensor.copy_(both[how](tensor, theirs))

        monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)

    return other_gives


@pytest.mark.parametrize(
    ("mine", "theirs", "weight"), [(2, 4, 2 / 3), (4, 2, 4 / 3), (3, 3, 1.0), (0, 4, 0.0), (1, 0, 2.0), (0, 0, None)]
)
def test_each_image_of_a_step_counts_once(reduced, mine, theirs, weight):
    reduced(theirs)
    found = image_weight(SimpleNamespace(world_size=2, device="cpu"), mine)
    assert (found if found is None else float(found)) == (weight if weight is None else pytest.approx(weight))


@pytest.mark.parametrize(("images", "weight"), [(0, None), (1, 1.0), (5, 1.0)])
def test_the_images_of_one_process_all_count(images, weight):
    assert image_weight(SimpleNamespace(world_size=1), images) == weight


def test_processes_agree_on_the_largest_numbers_every_few_steps(reduced):
    reduced(5, 0)
    alone, two = SimpleNamespace(world_size=1), SimpleNamespace(world_size=2, device="cpu")
    assert all_reduce_max(alone, 1, 2, 1) == [2, 1]
    assert all_reduce_max(two, SYNC_EVERY, 2, 1) == [5, 1]
    for step in (1, SYNC_EVERY - 1, SYNC_EVERY + 1):
        assert all_reduce_max(two, step, 2, 1) == [0, 0]


@pytest.mark.parametrize(("count", "steps"), [(1, []), (2, ["barrier", "destroy"])])
def test_several_processes_leave_together(monkeypatch, count, steps):
    done = []
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: done.append("destroy"))
    _leave(SimpleNamespace(world_size=count, barrier=lambda: done.append("barrier")))
    assert done == steps


@pytest.mark.parametrize(("error", "left"), [(None, 1), (distributed.Stopped(15, 3), 1), (ValueError("x"), 0)])
def test_an_error_of_one_process_is_not_waited_for(monkeypatch, error, left):
    leaving = []
    monkeypatch.setattr(distributed, "init_fabric", lambda **settings: SimpleNamespace(world_size=1))
    monkeypatch.setattr(distributed, "_leave", leaving.append)
    with nullcontext() if error is None else pytest.raises(type(error)), distributed.distributed() as fabric:
        if error:
            raise error
    assert leaving == [fabric] * left


def test_how_long_the_others_are_waited_for(slurm, monkeypatch):
    waited = []
    monkeypatch.setattr(distributed, "all_joined", lambda *given: waited.append(given) or nullcontext())
    init_fabric(accelerator="cpu", minutes=7.0)
    init_fabric(accelerator="cpu")
    assert waited == [(1, 7.0), (1, 30.0)]


def test_tasks_of_srun_meet_at_the_first_node(slurm, monkeypatch):
    slurm()
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    calls = []
    monkeypatch.setattr(distributed, "_store", torch.distributed.HashStore)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda **given: calls.append(given))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: calls.append("destroy"))
    with process_group("cpu") as group:
        assert (group.rank, group.count) == (3, 4)
        assert os.environ["MASTER_ADDR"] == "n1"
        assert int(os.environ["MASTER_PORT"]) > 1024
        (joined,) = calls
    assert (joined["rank"], joined["world_size"], joined["timeout"]) == (3, 4, distributed.TIMEOUT)
    assert calls[1:] == ["destroy"]


def test_each_process_of_a_group_has_its_own_gpu(slurm, monkeypatch):
    slurm()
    monkeypatch.setattr(distributed, "pick_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen = []

    def choose(number):
        chosen.append(number)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.cuda, "set_device", choose)
    with pytest.raises(KeyboardInterrupt), process_group("cuda"):
        pass
    assert chosen == [1]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(MapetError, match="1 GPUs but local rank 1: start fewer"), process_group("cuda"):
        pass


def test_a_second_ctrl_c_ends_at_once():
    with interruptible() as signalled:
        assert signalled() == 0
        signal.raise_signal(signal.SIGTERM)
        assert signalled() == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with interruptible() as signalled:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert signalled() == signal.SIGINT


def test_a_package_that_is_only_asked_for_its_version_is_not_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "tqdm", raising=False)
    with distributed._version_only("tqdm"):
        assert sys.modules["tqdm"].__version__ == version("tqdm")
        assert not hasattr(sys.modules["tqdm"], "tqdm")
        with distributed._version_only("tqdm"):
            pass
        assert "tqdm" in sys.modules
    assert "tqdm" not in sys.modules


def test_a_training_that_was_stopped_says_by_what_and_when():
    stopped = distributed.Stopped(signal.SIGTERM, 3)
    assert (str(stopped), stopped.number, stopped.step) == ("stopped by SIGTERM after step 3", signal.SIGTERM, 3)
