"""Data parallelism around an objective that is written for one device: DDP, or FSDP2 with sharded weights.

Under FSDP2 (Zhao et al., arXiv 2304.11277; ``fully_shard``) each process holds some rows of every weight, of its
optimiser moments and of its moving average. Each module of a ``ModuleList``, that is each block, is one group that is
gathered for its forward and backward pass; the remaining parameters are one more group.
"""

import copy
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mapet.engine.checkpoint import Checkpoint
from mapet.engine.memory import recompute

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch.distributed.device_mesh import DeviceMesh


def fabric_strategy(name: str, processes: int, timeout: timedelta) -> Any:
    """Fabric's strategy for ``"ddp"`` or ``"fsdp"``, whose collectives wait that long; ``"auto"`` for one process."""
    if processes == 1:
        return "auto"
    from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy

    if name == "ddp":
        return DDPStrategy(timeout=timeout)
    return ModelParallelStrategy(_shard, data_parallel_size=processes, tensor_parallel_size=1, timeout=timeout)


def set_up(
    fabric: "Fabric",
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    compiled: bool = False,
    grad_checkpointing: bool = False,
) -> tuple[nn.Module, Any, Any]:
    """Wrap an objective and its optimiser for ``fabric``. Every process starts from the weights of rank 0.

    Under FSDP2 the trained module is a copy of ``objective``, and ``optimizer`` updates the copy's weights:
    ``load_full_state`` copies them back.

    Returns:
        The module that holds the weights in training, the module to call, and the optimiser to step.
    """
    from lightning_fabric.strategies import ModelParallelStrategy

    if grad_checkpointing:
        recompute(objective)
    if not isinstance(fabric.strategy, ModelParallelStrategy):
        model, wrapped = fabric.setup(torch.compile(objective) if compiled else objective, optimizer)
        return objective, model, wrapped
    _broadcast(objective, fabric)
    trained = copy.deepcopy(objective)
    model = fabric.setup_module(torch.compile(trained) if compiled else trained)
    sharded = dict(trained.named_parameters())
    by_parameter = {parameter: sharded[name] for name, parameter in objective.named_parameters()}
    for group in optimizer.param_groups:
        group["params"] = [by_parameter[parameter] for parameter in group["params"]]
    return trained, model, fabric.setup_optimizers(optimizer)


@torch.no_grad()
def load_full_state(tensors: Mapping[str, Tensor], objective: nn.Module) -> None:
    """Copy trained weights into an objective on one device, gathered tensor by tensor. All processes call it."""
    state = objective.state_dict()
    for name, tensor in tensors.items():
        state[name].copy_(full_tensor(tensor))


def full_tensor(tensor: Tensor) -> Tensor:
    """The tensor with the rows of all processes. All processes call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_shards(tensors: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """The rows that this process holds; replicated tensors belong to rank 0."""
    return {name: _local(t) for name, t in tensors.items() if isinstance(t, DTensor) or rank == 0}


@torch.no_grad()
def load_shard(tensor: Tensor, checkpoint: Checkpoint, name: str) -> Tensor:
    """Read this process's rows of ``tensor``, in place, from a checkpoint of the same shape."""
    _local(tensor).copy_(checkpoint.read(name, *_local_rows(tensor)))
    return tensor


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _local_rows(tensor: Tensor) -> tuple[int, int | None]:
    """First row of this process and one past its last: equal parts, rounded up, as ``fully_shard`` splits."""
    if not isinstance(tensor, DTensor):
        return 0, None
    size = -(-len(tensor) // tensor.device_mesh.size())
    first = min(tensor.device_mesh.get_local_rank() * size, len(tensor))
    return first, first + len(tensor.to_local())


def _shard(module: nn.Module, mesh: "DeviceMesh") -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for block in _blocks(module):
        fully_shard(block, mesh=mesh["data_parallel"])
    fully_shard(module, mesh=mesh["data_parallel"])
    return module


def _blocks(module: nn.Module) -> Iterable[nn.Module]:
    return [block for part in module.modules() if isinstance(part, nn.ModuleList) for block in part]


@torch.no_grad()
def _broadcast(objective: nn.Module, fabric: "Fabric") -> None:
    """Give every process the weights of rank 0, as DDP does itself."""
    for tensor in (*objective.parameters(), *objective.buffers()):
        on_device = tensor.detach().to(fabric.device)
        torch.distributed.broadcast(on_device, 0)
        tensor.copy_(on_device)
