"""Data-parallel helpers for work without gradients."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ProcessGroup:
    """A group of ``count`` processes; the default is a single process.

    Attributes:
        rank: this process, from 0; rank 0 writes the results.
        count: number of processes; several communicate through ``torch.distributed``.
    """

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which writes and logs."""
        return self.rank == 0

    def share(self, indices: "Tensor") -> "Tensor":
        """This process's share of ``indices`` (N,): one of ``count`` contiguous parts of equal length up to one."""
        return indices.tensor_split(self.count)[self.rank]

    def sum(self, tensor: "Tensor") -> "Tensor":
        """The sum over all processes, bit-identical on each; may overwrite ``tensor``.

        Raises:
            MapetError: another process ended.
        """
        if self.count > 1:
            from torch.distributed import all_reduce

            try:
                all_reduce(tensor)
            except RuntimeError:
                raise MapetError(
                    f"One of the {self.count} processes ended: fix what its own message says, then run the same "
                    "command again."
                ) from None
        return tensor

    def wait(self) -> None:
        """Wait for all processes."""
        import torch

        self.sum(torch.zeros(1))


SINGLE_PROCESS = ProcessGroup()


@dataclass(frozen=True)
class Launched:
    """This process among those started by torchrun or srun.

    Attributes:
        count: number of processes; 1 without a launcher.
        rank: global rank, from 0.
        local: rank on this node.
    """

    count: int = 1
    rank: int = 0
    local: int = 0


def launched() -> Launched:
    """Read the launcher's environment variables; torchrun first, as srun may have started it.

    SLURM counts only if srun itself started this process: a shell inside an allocation, or a batch script, has most of
    its variables too, but is a single process.
    """
    if "WORLD_SIZE" in os.environ:
        local = int(os.environ.get("LOCAL_RANK", 0))
        return Launched(int(os.environ["WORLD_SIZE"]), int(os.environ.get("RANK", local)), local)
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return Launched(*(int(os.environ[f"SLURM_{name}"]) for name in ("STEP_NUM_TASKS", "PROCID", "LOCALID")))
    return Launched()


def processes_here() -> int:
    """Processes that the launcher started on this machine; 1 if it does not say."""
    return int(
        os.environ.get("LOCAL_WORLD_SIZE") or (launched().count > 1 and os.environ.get("SLURM_NTASKS_PER_NODE")) or 1
    )


def first_process() -> bool:
    """Whether this is rank 0; known before the process group is initialised."""
    return launched().rank == 0
