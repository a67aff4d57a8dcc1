"""Memory of a training step, predicted before the first: the step runs on fake tensors, which have sizes but no values.

Every tensor is counted from its creation to its release, in the sequence in which ``fit`` makes them: weights, moving
average, batch, activations, gradients, moments. ``WORKSPACE`` and ``WASTE`` are fitted (``benchmarks/memory.py``).
"""

import weakref
from bisect import bisect_left, insort
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mapet.engine.memory import recompute
from mapet.utils.autograd import start_without_devices

WORKSPACE = {"cpu": 60 << 20, "cuda": 40 << 20}  # what a step's libraries load and keep
WASTE = {
    "cpu": 1.25,
    "cuda": 1.05,
}  # of a step's memory: what the allocator loses, from step to step, beyond ``Allocated``


@dataclass(frozen=True)
class Footprint:
    """Peak bytes of a training on one device.

    Attributes:
        weights: of the objective, buffers included.
        optimizer: moments, and the moving average of the weights if there is one.
        batch: the images of a step and what belongs to them.
        step: the rest at the peak: activations, gradients, logits, and holes between them.
    """

    weights: int
    optimizer: int
    batch: int
    step: int

    @property
    def total(self) -> int:
        """The peak."""
        return self.weights + self.optimizer + self.batch + self.step

    @property
    def parts(self) -> dict[str, int]:
        """All but the images, by name."""
        return {"weights": self.weights, "optimizer": self.optimizer, "step": self.step}


def footprint(
    objective: nn.Module,
    batch: Callable[[], Mapping[str, Tensor]],
    *,
    accumulate: int = 1,
    device: str = "cpu",
    precision: str = "float32",
    ema: bool = False,
    grad_checkpointing: bool = False,
    copies: int = 0,
) -> Footprint:
    """The memory of a process that trains ``objective`` with AdamW.

    Args:
        objective: as in ``fit``, on torch's meta device; it cannot be used afterwards.
        batch: makes this process's share of a step, whose values do not matter.
        accumulate, precision, ema, grad_checkpointing: as in ``fit``.
        device: ``"cpu"`` or ``"cuda"``.
        copies: further tensors of the size of each gradient, such as DDP's buckets.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    objective.train()
    if grad_checkpointing:
        recompute(objective)
    memory = Allocated(holes=device == "cpu")
    start_without_devices()
    with FakeTensorMode(allow_non_fake_inputs=True), memory, torch.device(device):
        objective.to_empty(device=device)
        weights, trained = memory.now, [p for p in objective.parameters() if p.requires_grad]
        state = [torch.empty_like(p) for p in trained for _ in ("exp_avg", "exp_avg_sq")]
        state += [torch.empty_like(p) for p in objective.parameters() if ema]
        optimizer, images = memory.now - weights, {**batch()}
        buckets = [torch.empty_like(p) for p in trained for _ in range(copies)]
        shared = sum(tensor.untyped_storage().nbytes() for tensor in images.values())
        for piece in _largest(images, accumulate):
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
                loss = objective(**piece)["loss"]
            loss.backward()
            del loss
        del state, buckets
    step = WASTE[device] * (memory.peak - weights - optimizer - shared) + WORKSPACE[device]
    return Footprint(weights, optimizer, shared, int(step))


def _largest(batch: Mapping[str, Tensor], accumulate: int) -> list[dict[str, Tensor]]:
    """The first two micro-batches: none is larger, and the second finds the gradients of the first."""
    size = -(-len(next(iter(batch.values()))) // accumulate)
    pieces = ({name: tensor[first : first + size] for name, tensor in batch.items()} for first in (0, size))
    return list(pieces)[:accumulate]


class Allocated(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that operations return inside this context.

    With ``holes`` the peak is that of a heap that keeps freed blocks as glibc does for ``keep_freed``: a block takes
    the smallest hole that is large enough, and splits it. Holes are not joined, as small objects lie between them.

    Attributes:
        now: bytes of the tensors that exist.
        peak: the largest sum so far, or with ``holes`` the size of the heap.
    """

    def __init__(self, holes: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.holes: list[int] | None = [] if holes else None
        self._known: set[int] = set()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Perform the operation and count its results."""
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self._place(size)
            weakref.finalize(storage, self._free, key, size).atexit = False

    def _place(self, size: int) -> None:
        if self.holes is None:
            self.peak = max(self.peak, self.now)
            return
        index = bisect_left(self.holes, size)
        if index == len(self.holes):
            self.peak += size
        elif rest := self.holes.pop(index) - size:
            insort(self.holes, rest)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
        if self.holes is not None:
            insort(self.holes, size)
