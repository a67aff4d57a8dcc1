"""Vectors held in memory, by one process or by several that each hold some of them."""

from collections.abc import Iterator

import torch
from torch import Tensor

from mapet.tokenizers.assign import CELLS, slices
from mapet.utils.process_group import SINGLE_PROCESS, ProcessGroup


class Pool:
    """This process's share of numbered vectors, handed out in chunks (n, F) on the device that compares them.

    Args:
        vectors: (n, F) of any float type, on any device.
        rows: (n,) int64, the number of each of them among the vectors of all processes; None for one process alone.
        total: vectors of all processes.
        device: where chunks go; None: where ``vectors`` are.
        crew: the processes.
        chunk: vectors in a chunk; None for 64 MiB.
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
        """Which of this process's vectors each chunk holds."""
        return slices(len(self.vectors), self.chunk)

    def __iter__(self) -> Iterator[Tensor]:
        for part in self.slices:
            yield self.vectors[part].to(self.device)

    def take(self, numbers: Tensor) -> Tensor:
        """The vectors of these numbers (m,), whichever process holds them: (m, F) float32."""
        places = torch.full((self.total,), -1, device=self.device)
        places[self.rows] = torch.arange(len(self.rows), device=self.device)
        mine = places[numbers]
        here = (mine >= 0).nonzero().flatten()
        taken = torch.zeros(len(numbers), self.vectors.shape[1], device=self.device)
        taken[here] = self.vectors[mine[here].to(self.vectors.device)].to(self.device).float()
        return self.process_group.sum(taken)

    def spread(self, values: Tensor) -> Tensor:
        """One value for each vector of this process (n,) → of all processes, by number: (total,)."""
        everywhere = torch.zeros(self.total, dtype=values.dtype, device=self.device)
        everywhere[self.rows] = values
        return self.process_group.sum(everywhere)
