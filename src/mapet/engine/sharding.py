"""Processes around an objective that is written for one device: DDP, or FSDP2 with the weights spread over them.

Under FSDP2 (Zhao et al., arXiv 2304.11277; ``fully_shard``) a process keeps some rows of every weight, of its moments
and of its average. Each module of a ``ModuleList``, that is each block, is gathered for its own turn and let go again;
what is left is one more group.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mapet.engine.checkpoint import Checkpoint
from mapet.engine.memory import recompute

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch.distributed.device_mesh import DeviceMesh


def strategy(name: str, processes: int) -> Any:
    """Fabric's own for ``"ddp"`` or ``"fsdp"``; one process has nothing to share."""
    if processes == 1 or name == "ddp":
        return "auto" if processes == 1 else name
    from lightning_fabric.strategies import ModelParallelStrategy

    return ModelParallelStrategy(_split, data_parallel_size=processes, tensor_parallel_size=1)


def set_up(
    fabric: "Fabric",
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    compiled: bool = False,
    grad_checkpointing: bool = False,
) -> tuple[nn.Module, Any, Any]:
    """The module that holds the weights while they are trained, the one to call, and the optimiser to step.

    Every process begins with the first one's weights. Under FSDP2 the trained module is a copy, whose weights take the
    place of the objective's in ``optimizer``: bring them back with ``hand_over``.
    """
    from lightning_fabric.strategies import ModelParallelStrategy

    if grad_checkpointing:
        recompute(objective)
    if not isinstance(fabric.strategy, ModelParallelStrategy):
        model, wrapped = fabric.setup(torch.compile(objective) if compiled else objective, optimizer)
        return objective, model, wrapped
    _agree(objective, fabric)
    trained = copy.deepcopy(objective)
    model = fabric.setup_module(torch.compile(trained) if compiled else trained)
    theirs = dict(trained.named_parameters())
    ours = {parameter: theirs[name] for name, parameter in objective.named_parameters()}
    for group in optimizer.param_groups:
        group["params"] = [ours[parameter] for parameter in group["params"]]
    return trained, model, fabric.setup_optimizers(optimizer)


@torch.no_grad()
def hand_over(tensors: Mapping[str, Tensor], objective: nn.Module) -> None:
    """Write trained weights into an objective on one device, gathered one after another; called by all processes."""
    own = objective.state_dict()
    for name, tensor in tensors.items():
        own[name].copy_(whole(tensor))


def whole(tensor: Tensor) -> Tensor:
    """The tensor with the rows of all processes, each of which must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def mine(tensors: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """The rows that this process holds; what all hold alike belongs to the first."""
    return {name: _own(t) for name, t in tensors.items() if isinstance(t, DTensor) or rank == 0}


@torch.no_grad()
def fill(tensor: Tensor, checkpoint: Checkpoint, name: str) -> Tensor:
    """``tensor``, this process's rows of it read from a checkpoint of the same shape."""
    _own(tensor).copy_(checkpoint.read(name, *_rows(tensor)))
    return tensor


def _own(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _rows(tensor: Tensor) -> tuple[int, int | None]:
    """First row of this process and the one after its last: equal parts, rounded up, as ``fully_shard`` cuts."""
    if not isinstance(tensor, DTensor):
        return 0, None
    size = -(-len(tensor) // tensor.device_mesh.size())
    first = min(tensor.device_mesh.get_local_rank() * size, len(tensor))
    return first, first + len(tensor.to_local())


def _split(module: nn.Module, mesh: "DeviceMesh") -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for block in _blocks(module):
        fully_shard(block, mesh=mesh["data_parallel"])
    fully_shard(module, mesh=mesh["data_parallel"])
    return module


def _blocks(module: nn.Module) -> Iterable[nn.Module]:
    return [block for part in module.modules() if isinstance(part, nn.ModuleList) for block in part]


@torch.no_grad()
def _agree(objective: nn.Module, fabric: "Fabric") -> None:
    """Give every process the first one's weights, as DDP does by itself."""
    for tensor in (*objective.parameters(), *objective.buffers()):
        there = tensor.detach().to(fabric.device)
        torch.distributed.broadcast(there, 0)
        tensor.copy_(there)
