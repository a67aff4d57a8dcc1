"""Devices, processes and signals: what surrounds a training step and must not change its result."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from importlib.metadata import version
from itertools import count
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mapet.engine.gpu import require_kernels
from mapet.engine.memory import keep_freed
from mapet.engine.peers import all_joined, losses_named
from mapet.utils.errors import MapetError, reason
from mapet.utils.process_group import ProcessGroup, launched
from mapet.utils.signals import handled, stop_signals

if TYPE_CHECKING:
    from lightning_fabric import Fabric


TIMEOUT = timedelta(days=7)  # for a collective: another process may have more or slower images
WORKERS = {"cpu": 0, "mps": 4}  # a CPU needs its cores to train; on macOS each worker starts anew: 2 s, 0.5 GB
SYNC_EVERY = 10  # steps between two decisions to stop or save, each of which synchronises the processes
_joined = count()  # process groups so far


@contextmanager
def _version_only(package: str) -> Iterator[None]:
    """Let an import ask for the version of a package that it does not use: all of torchmetrics takes seconds."""
    if package in sys.modules:
        yield
        return
    light = ModuleType(package)
    light.__dict__["__version__"] = version(package)
    sys.modules[package] = light
    try:
        yield
    finally:
        del sys.modules[package]


class Stopped(Exception):
    """Training was interrupted by a signal; a checkpoint of the last step is on disk."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}")
        self.number, self.step = number, step


def init_fabric(
    *,
    accelerator: str = "auto",
    devices: int = 1,
    num_nodes: int = 1,
    precision: str = "float32",
    strategy: str = "ddp",
    minutes: float = 30.0,
) -> "Fabric":
    """Launch Lightning Fabric on this machine, under torchrun or under SLURM.

    Args:
        accelerator: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        devices: processes per node.
        num_nodes: number of nodes.
        precision: ``"float32"``, or ``"bfloat16"`` for mixed precision.
        strategy: ``"ddp"``, or ``"fsdp"`` to shard the weights (``sharding.py``).
        minutes: that a process waits for the others.

    Raises:
        MapetError: the machine lacks the accelerator, or the launcher started another number of processes.
        PeersLost: a process did not join.
    """
    with _version_only("torchmetrics"):
        from lightning_fabric import Fabric

    from mapet.engine.sharding import fabric_strategy
    from mapet.utils.log import without_fabric

    without_fabric()
    device, count = pick_device(accelerator), require_started(devices, num_nodes)
    if device.type == "cpu":
        keep_freed()
    try:
        fabric = Fabric(
            accelerator=device.type,
            devices=devices,
            num_nodes=num_nodes,
            strategy=fabric_strategy(strategy, count, timedelta(minutes=minutes)),
            precision="bf16-mixed" if precision == "bfloat16" else "32-true",
            plugins=_environment(devices, num_nodes),
        )
    except (RuntimeError, ValueError) as error:
        raise MapetError(f"{devices} × {device.type} do not work: {reason(error)}. Try --accelerator cpu.") from error
    with all_joined(count, minutes):
        fabric.launch()
    return fabric


def require_started(devices: int, num_nodes: int) -> int:
    """The number of processes that train together, which a launcher must have started.

    Raises:
        MapetError: it started another number.
    """
    count, started = devices * num_nodes, launched().count
    if started not in (1, count):
        raise MapetError(
            f"The launcher started {started} processes, but --devices {devices} × --num-nodes {num_nodes} = {count}: "
            "make the two equal."
        )
    return count


def _environment(devices: int | None = None, num_nodes: int | None = None) -> Any:
    """Fabric's environment plugins, in agreement with ``launched``; None leaves the detection to Fabric.

    Fabric itself mistakes processes that it started inside a SLURM batch script for tasks of srun.

    Raises:
        MapetError: SLURM does not give the processes per node, or they differ from ``devices`` and ``num_nodes``.
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
        raise MapetError("SLURM does not give the number of processes per node: use srun --ntasks-per-node.")
    nodes = int(os.environ.get("SLURM_NNODES", count // each))
    if devices is not None and (devices, num_nodes) != (each, nodes):
        raise MapetError(
            f"SLURM has {nodes} nodes with {each} processes each, but --num-nodes is {num_nodes} and --devices "
            f"{devices}: make them equal."
        )
    return [SLURMEnvironment(auto_requeue=False)]


@contextmanager
def distributed(**settings: Any) -> Iterator["Fabric"]:
    """``init_fabric`` as a context. Enter and leave on all ranks; destroys the process group before shutdown.

    A connection that a peer closes during interpreter shutdown can abort the process.
    """
    fabric = init_fabric(**settings)
    with losses_named(fabric, settings.get("minutes", 30.0)):
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
    """Initialise ``torch.distributed`` under torchrun or srun, one GPU per process; otherwise a single process.

    Raises:
        MapetError: the machine lacks the accelerator, or has fewer GPUs than processes.
    """
    me, device = launched(), pick_device(accelerator)
    if me.count == 1:
        yield ProcessGroup()
        return
    if device.type == "cuda":
        if me.local >= torch.cuda.device_count():
            raise MapetError(
                f"This machine has {torch.cuda.device_count()} GPUs but local rank {me.local}: start fewer processes."
            )
        torch.cuda.set_device(me.local)
    for environment in _environment() or []:  # SLURM: first node of the job, and a port
        os.environ.update(MASTER_ADDR=environment.main_address, MASTER_PORT=str(environment.main_port))
    from torch.distributed.distributed_c10d import PrefixStore

    store = PrefixStore(f"mapet {next(_joined)}", _store())
    torch.distributed.init_process_group(store=store, timeout=TIMEOUT, rank=me.rank, world_size=me.count)
    try:
        yield ProcessGroup(me.rank, me.count)
    finally:
        torch.distributed.destroy_process_group()


@cache
def _store() -> Any:
    """The processes' key-value store; each group needs its own prefix, as the addresses of earlier ones stay there."""
    from torch.distributed.rendezvous import rendezvous

    return next(rendezvous("env://", timeout=TIMEOUT))[0]


def pick_device(accelerator: str = "auto") -> torch.device:
    """The device for ``accelerator``; "auto" prefers cuda to mps to cpu.

    Raises:
        MapetError: this machine does not have it, or the installed torch has no kernels for it.
    """
    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    available = [name for name, found in have.items() if found]
    if accelerator not in ("auto", *available):
        choices = ", ".join(available)
        raise MapetError(f'This machine has no accelerator "{accelerator}": choose one of auto, {choices}.')
    device = torch.device(available[0] if accelerator == "auto" else accelerator)
    if device.type == "cuda":
        require_kernels()
    return device


def cores() -> int:
    """CPU cores that this process may use, which a scheduler or a container may limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pick_workers(workers: int | None, device: torch.device) -> int:
    """``workers``, or by default up to ``WORKERS`` or 8, but not more than the cores."""
    return min(WORKERS.get(device.type, 8), cores()) if workers is None else workers


@contextmanager
def interruptible() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the first signal to stop received, 0 for none. A second Ctrl-C exits at once."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    with handled(handle, stop_signals()):
        yield lambda: received[0] if received else 0


def all_reduce_max(fabric: "Fabric", step: int, *numbers: int) -> list[int]:
    """The maximum of each of ``numbers`` over all processes, so that all act alike after the same step.

    Several processes synchronise every ``SYNC_EVERY`` steps only; in between all numbers are 0.
    """
    if fabric.world_size == 1:
        return list(numbers)
    if step % SYNC_EVERY:
        return [0] * len(numbers)
    largest = torch.tensor(numbers, device=fabric.device)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return largest.tolist()


def image_weight(fabric: "Fabric", images: int) -> Tensor | float | None:
    """This process's number of images over the mean of all processes; exactly 1 if they have equal numbers.

    Processes average their gradients, so a loss times this weight counts each image of the step once. A process without
    images has weight 0. None if no process has any; all processes then agree.
    """
    if fabric.world_size == 1:
        return 1.0 if images else None
    total = torch.full((), float(images), device=fabric.device)
    torch.distributed.all_reduce(total)
    return images * fabric.world_size / total if images or total.item() else None
