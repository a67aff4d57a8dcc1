"""Vectors in memory, of one process or distributed over several."""

from collections.abc import Iterator

import torch
from torch import Tensor

from mapet.tokenizers.assign import CELLS, slices
from mapet.utils.process_group import SINGLE_PROCESS, ProcessGroup


class VectorPool:
    """This process's share of numbered vectors; iterates over chunks (n, F) on ``device``.

    Args:
        vectors: (n, F) of any float dtype, on any device.
        rows: (n,) int64, their indices among the vectors of all processes; None for a single process.
        total: number of vectors of all processes.
        device: device of the chunks; None for that of ``vectors``.
        process_group: the processes.
        chunk: vectors per chunk; None for 64 MiB.
    """

    def __init__(
        self,
        vectors: Tensor,
        *,
        rows: Tensor | None = None,
        total: int | None = None,
        device: torch.device | str | None = None,
        process_group: ProcessGroup = SINGLE_PROCESS,
        chunk: int | None = None,
    ) -> None:
        self.vectors, self.process_group = vectors, process_group
        self.device = vectors.device if device is None else torch.device(device)
        self.total = len(vectors) if total is None else total
        self.rows = (torch.arange(self.total) if rows is None else rows).to(self.device)
        self.chunk = chunk or max(1, CELLS["cpu"] // vectors.shape[1])

    @property
    def slices(self) -> list[slice]:
        """The slice of this process's vectors for each chunk."""
        return slices(len(self.vectors), self.chunk)

    def __iter__(self) -> Iterator[Tensor]:
        for part in self.slices:
            yield self.vectors[part].to(self.device)

    def take(self, numbers: Tensor) -> Tensor:
        """The vectors at indices ``numbers`` (m,), of whichever process: (m, F) float32."""
        local = torch.full((self.total,), -1, device=self.device)
        local[self.rows] = torch.arange(len(self.rows), device=self.device)
        index = local[numbers]
        here = (index >= 0).nonzero().flatten()
        taken = torch.zeros(len(numbers), self.vectors.shape[1], device=self.device)
        taken[here] = self.vectors[index[here].to(self.vectors.device)].to(self.device).float()
        return self.process_group.sum(taken)

    def all_gather(self, values: Tensor) -> Tensor:
        """One value per vector, (n,) of this process → (total,) of all processes."""
        gathered = torch.zeros(self.total, dtype=values.dtype, device=self.device)
        gathered[self.rows] = values
        return self.process_group.sum(gathered)
