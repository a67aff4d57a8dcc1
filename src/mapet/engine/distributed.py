"""Devices, processes and signals: everything around a step that must not change its result."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from itertools import count
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

from mapet.engine.memory import keep_freed
from mapet.utils.errors import MapetError
from mapet.utils.process_group import ProcessGroup, launched

if TYPE_CHECKING:
    from lightning_fabric import Fabric


PATIENCE = timedelta(days=7)  # that one process waits for another, which may have more or slower images
_joined = count()  # process groups so far
ASK = 10  # steps after which several processes agree whether to stop: each time costs a synchronisation


class Stopped(Exception):
    """The user or the scheduler asked to stop; everything needed to go on is on disk."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}")
        self.number, self.step = number, step


def world(
    *,
    accelerator: str = "auto",
    devices: int = 1,
    num_nodes: int = 1,
    precision: str = "float32",
    strategy: str = "ddp",
) -> "Fabric":
    """Start Lightning Fabric on this machine, under torchrun or under SLURM, and join the other processes.

    Args:
        accelerator: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        devices: processes on this node.
        num_nodes: nodes.
        precision: ``"float32"``, or ``"bfloat16"`` for mixed precision.
        strategy: ``"ddp"``, or ``"fsdp"`` to spread the weights over the processes (``shard.py``).

    Raises:
        MapetError: an accelerator that this machine lacks, or another number of processes than the launcher's.
    """
    from lightning_fabric import Fabric

    from mapet.engine import sharding as shard

    device, count, started = pick_device(accelerator), devices * num_nodes, launched().count
    if started not in (1, count):
        raise MapetError(
            f"{started} processes were started, but --devices {devices} × --num-nodes {num_nodes} are "
            f"{count}: make the two equal."
        )
    if device.type == "cpu":
        keep_freed()
    try:
        fabric = Fabric(
            accelerator=device.type,
            devices=devices,
            num_nodes=num_nodes,
            strategy=shard.strategy(strategy, count),
            precision="bf16-mixed" if precision == "bfloat16" else "32-true",
            plugins=_environment(devices, num_nodes),
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise MapetError(f"Cannot use {devices} × {device.type} here: {reason} Try --accelerator cpu.") from error
    fabric.launch()
    return fabric


def _environment(devices: int | None = None, num_nodes: int | None = None) -> Any:
    """Fabric's plugins that find the other processes where ``launched`` does; None: Fabric finds them by itself.

    It would not where it has started them in a batch script: there it takes them for tasks of srun.

    Raises:
        MapetError: SLURM does not tell how many processes a node has, or it is not what is asked for.
    """
    from lightning_fabric.plugins.environments import (
        LightningEnvironment,
        SLURMEnvironment,
        TorchElasticEnvironment,
    )

    if "WORLD_SIZE" in os.environ:
        own = "SLURM_NTASKS" in os.environ and not TorchElasticEnvironment.detect()
        return [LightningEnvironment()] if own else None
    count, each = launched().count, int(os.environ.get("SLURM_NTASKS_PER_NODE", 0))
    if count == 1:
        return [LightningEnvironment()]
    if not each:
        raise MapetError("SLURM does not tell how many processes each node has: give srun --ntasks-per-node too.")
    nodes = int(os.environ.get("SLURM_NNODES", count // each))
    if devices is not None and (devices, num_nodes) != (each, nodes):
        raise MapetError(
            f"SLURM has {nodes} nodes with {each} processes each, but --num-nodes is {num_nodes} and --devices "
            f"{devices}: make them equal."
        )
    return [SLURMEnvironment(auto_requeue=False)]


@contextmanager
def joined(**settings: Any) -> Iterator["Fabric"]:
    """``world``, met and left by all processes together: what they share is gone before Python begins to end.

    Connections that a peer closes while the interpreter is being torn down can abort it.
    """
    fabric = world(**settings)
    fabric.barrier()
    try:
        yield fabric
    except Stopped:
        _leave(fabric)
        raise
    _leave(fabric)


def _leave(fabric: "Fabric") -> None:
    if fabric.world_size > 1:
        fabric.barrier()
        torch.distributed.destroy_process_group()


@contextmanager
def process_group(accelerator: str = "auto") -> Iterator[ProcessGroup]:
    """Join the processes that torchrun or srun started, each with its own GPU where that is the device; else alone.

    Raises:
        MapetError: an accelerator that this machine lacks, or more processes on it than it has.
    """
    me, device = launched(), pick_device(accelerator)
    if me.count == 1:
        yield ProcessGroup()
        return
    if device.type == "cuda":
        if me.local >= torch.cuda.device_count():
            raise MapetError(f"This machine has {torch.cuda.device_count()} GPUs: start no more processes on it.")
        torch.cuda.set_device(me.local)
    for environment in _environment() or []:  # of SLURM, which names the first node and a port of this job
        os.environ.update(MASTER_ADDR=environment.main_address, MASTER_PORT=str(environment.main_port))
    from torch.distributed.distributed_c10d import PrefixStore

    store = PrefixStore(f"mapet {next(_joined)}", _store())
    torch.distributed.init_process_group(store=store, timeout=PATIENCE, rank=me.rank, world_size=me.count)
    try:
        yield ProcessGroup(me.rank, me.count)
    finally:
        torch.distributed.destroy_process_group()


@cache
def _store() -> Any:
    """The processes' key-value store; each group needs its own prefix, as the addresses of earlier ones stay there."""
    from torch.distributed.rendezvous import rendezvous

    return next(rendezvous("env://", timeout=PATIENCE))[0]


def pick_device(accelerator: str = "auto") -> torch.device:
    """The device for work outside training.

    Raises:
        MapetError: this machine has no such device.
    """
    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if accelerator == "auto":
        return torch.device(next(name for name, there in have.items() if there))
    if not have.get(accelerator, False):
        there = ", ".join(name for name, there in have.items() if there)
        raise MapetError(f'This machine has no accelerator "{accelerator}": choose one of auto, {there}.')
    return torch.device(accelerator)


def cores() -> int:
    """Those that this process may use: a scheduler or a container may have given it a part of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pick_workers(workers: int | None, device: torch.device) -> int:
    """``workers``, or as many as decode for ``device`` without robbing it of cores."""
    if workers is not None:
        return workers
    return 0 if device.type == "cpu" else min(8, cores())


@contextmanager
def interruptible() -> Iterator[Callable[[], int]]:
    """Yield a function that tells which of SIGINT and SIGTERM came first, 0 for none; a second Ctrl-C ends at once."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        came.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: came[0] if came else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def agreed(fabric: "Fabric", step: int, *numbers: int) -> list[int]:
    """The largest of each of ``numbers`` among all processes, so that they do the same after the same step.

    Several processes ask only now and then; in between all are 0.
    """
    if fabric.world_size == 1:
        return list(numbers)
    if step % ASK:
        return [0] * len(numbers)
    largest = torch.tensor(numbers, device=fabric.device)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return largest.tolist()
