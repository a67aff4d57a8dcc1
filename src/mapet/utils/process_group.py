"""Processes that share one piece of work without gradients: each takes its part, and sums are agreed on."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ProcessGroup:
    """This process among ``count``; the default is one that works alone.

    Attributes:
        rank: from 0; the process of rank 0 writes what all of them make.
        count: processes, joined through ``torch.distributed`` where there are several.
    """

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and talks."""
        return self.rank == 0

    def share(self, indices: "Tensor") -> "Tensor":
        """This process's part of ``indices`` (N,): one of ``count`` contiguous parts, equal up to one."""
        return indices.tensor_split(self.count)[self.rank]

    def sum(self, tensor: "Tensor") -> "Tensor":
        """The sum over all processes, the same bits on each; ``tensor`` itself may be overwritten.

        Raises:
            MapetError: another process has ended.
        """
        if self.count > 1:
            from torch.distributed import all_reduce

            try:
                all_reduce(tensor)
            except RuntimeError:
                raise MapetError(
                    f"Another of the {self.count} processes ended, and its own message says why: "
                    "mend that and give the same command again."
                ) from None
        return tensor

    def wait(self) -> None:
        """Until every process is here."""
        import torch

        self.sum(torch.zeros(1))


SINGLE_PROCESS = ProcessGroup()


@dataclass(frozen=True)
class Launched:
    """This process among those that torchrun or srun started.

    Attributes:
        count: of them; 1 where there was no launcher.
        rank: from 0.
        local: rank on this node.
    """

    count: int = 1
    rank: int = 0
    local: int = 0


def launched() -> Launched:
    """This process among those of its launcher; torchrun comes first, as srun may have started it.

    SLURM counts only where srun itself started this process: a shell inside an allocation, or a batch script, has most
    of its variables too, and is one process.
    """
    if "WORLD_SIZE" in os.environ:
        local = int(os.environ.get("LOCAL_RANK", 0))
        return Launched(int(os.environ["WORLD_SIZE"]), int(os.environ.get("RANK", local)), local)
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return Launched(*(int(os.environ[f"SLURM_{name}"]) for name in ("STEP_NUM_TASKS", "PROCID", "LOCALID")))
    return Launched()


def first_process() -> bool:
    """Whether this is rank 0, the process that writes; known before the process group is initialised."""
    return launched().rank == 0
