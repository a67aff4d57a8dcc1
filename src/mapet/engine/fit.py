"""The training loop of pre-training, fine-tuning and VQ-KD.

It knows no objective: a batch is a dict of tensors that the objective takes by name, the result a dict of scalars of
which ``"loss"`` is minimised. Each step is a pure function of (weights, optimiser state, step), so an interrupted and
resumed run ends bit-equal to an uninterrupted one.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from mapet.engine.checkpoint import Checkpoint
from mapet.engine.distributed import Stopped, all_reduce_max, image_weight, interruptible
from mapet.engine.memory import attempt
from mapet.engine.metrics import MetricsLogger
from mapet.engine.optim import Optim, average
from mapet.engine.progress import Meter
from mapet.engine.run import Run, prefixed
from mapet.engine.sharding import full_tensor, load_full_state, load_shard, local_shards, set_up
from mapet.utils.errors import MapetError
from mapet.utils.rng import random_bits

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mapet.engine.tracker import Track

SALT = 5  # separates the generator's seeds from other draws with the same seed
SAVE_SECONDS = 600.0  # at most between two checkpoints, however long an epoch is
Filler = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]  # an empty batch → one valid image of any content


class Batches(Protocol):
    """A training stream that can start at any step."""

    @property
    def steps(self) -> int:
        """Total steps."""
        ...

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one epoch."""
        ...

    def __call__(self, start: int) -> Iterator[dict[str, Tensor]]:
        """The batches of steps ``start``, ``start + 1``, …: this process's share of each global batch."""
        ...


def fit(
    objective: nn.Module,
    batches: Batches,
    optim: Optim,
    fabric: "Fabric",
    run: Run,
    *,
    seed: int = 0,
    accumulate: int = 1,
    more_parts: Callable[[], int] | None = None,
    save_every: int = 0,
    compiled: bool = False,
    grad_checkpointing: bool = False,
    label: str = "pretrain",
    describe: Callable[[Mapping[str, float]], str] = lambda metrics: f"loss {metrics['loss']:.3f}",
    track: "Track | None" = None,
) -> Run:
    """Train ``objective`` in place, from the run's last checkpoint if it has one, to the end of ``batches``.

    A step's loss and gradients are means over its readable images, whichever process has them. A step without any
    changes no weight: its row of the metrics has empty cells.

    Args:
        objective: ``forward(**batch) -> {"loss": scalar, ...}``. If it has a method ``discard_last``, that is called
            after a forward pass of a filler: inputs of weight 0 that are not among the step's images.
        batches: training stream. Its method ``filler``, if it has one, makes a valid image for a process that has none
            in a step; without it that is all zeros.
        optim: optimiser, learning rate, clipping, averaging.
        fabric: a launched Fabric: device, precision, processes.
        run: folder of metrics and checkpoints.
        seed: random seed of what the objective draws from torch's generator.
        accumulate: micro-batches per step and process, to save memory; gradients are the same. Equal on all processes.
        more_parts: called if a step does not fit into memory; returns the micro-batches of this and all later steps.
            None: the step fails.
        save_every: steps between two checkpoints that are kept; 0 keeps the last one only.
        compiled: use ``torch.compile``.
        grad_checkpointing: recompute the blocks' activations in the backward pass, to save memory.
        label: start of the progress line.
        describe: recent metrics → text of the progress line.
        track: takes the step and the metrics of each step, on rank 0, besides metrics.csv and TensorBoard.

    Raises:
        MapetError: the loss or the gradient is NaN or Inf; the last checkpoint is kept.
        Stopped: a signal to stop; a checkpoint of the last step is written.
    """
    trained, model, optimizer = set_up(fabric, objective, optim.optimizer, compiled, grad_checkpointing)
    ema = {name: p.detach().clone() for name, p in trained.named_parameters()} if optim.ema_decay else {}
    start = _restore(trained, optim.optimizer, ema, run)
    metrics = MetricsLogger(run, fabric, batches.steps_per_epoch, start, track)
    filler: Filler = getattr(batches, "filler", zeros)
    saved, sharded = time.monotonic(), trained is not objective

    def save(step: int) -> None:
        nonlocal saved
        metrics.flush()
        state, keep = _state(trained, optim.optimizer, ema), bool(save_every) and step % save_every == 0
        if sharded:
            rank, count = fabric.global_rank, fabric.world_size
            run.save_parts(step, local_shards(state, rank), rank=rank, count=count, barrier=fabric.barrier, keep=keep)
        elif fabric.is_global_zero:
            run.save(step, state, keep=keep)
        fabric.barrier()
        metrics.note_time(step)
        saved = time.monotonic()

    meter = Meter(label, batches.steps, start)
    with interruptible() as signalled, metrics, meter:
        trained.train()
        for step, batch in enumerate(metrics.timed(batches(start)), start + 1):
            torch.manual_seed(random_seed := int(random_bits(seed, SALT, step, fabric.global_rank)))
            lr = _set_lr(optimizer, optim.lr(step - 1))
            images = len(next(iter(batch.values())))
            weight = image_weight(fabric, images)
            if weight is None:
                metrics.skip(step, lr, metrics.names or [*_names(model, filler(batch)), "grad_norm"])
            else:
                passes = partial(backward, fabric, model, batch, weight=weight, even=sharded, filler=filler)
                values, accumulate = _fitting(passes, accumulate, more_parts, optimizer, random_seed)
                values["grad_norm"] = clip(fabric, model, optimizer, optim.clip_grad)
                metrics.record(step, lr, values, images=images)
                optimizer.step()
                optimizer.zero_grad()
                average(ema, trained, optim.ema_decay)
            number, late = all_reduce_max(fabric, step, signalled(), time.monotonic() - saved > SAVE_SECONDS)
            if number or late or step % (save_every or batches.steps_per_epoch) == 0 or step == batches.steps:
                save(step)
            if number:
                raise Stopped(number, step)
            if fabric.is_global_zero and metrics.rows and meter.due(step):
                meter.update(
                    step, f"{describe(metrics.recent())}  {metrics.pace()}", metrics.position(step, batches.steps)
                )
    if ema or sharded:
        load_full_state({**trained.state_dict(), **ema}, objective)
    return run


def zeros(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch of one image, all of whose tensors are 0."""
    return {name: tensor.new_zeros(1, *tensor.shape[1:]) for name, tensor in batch.items()}


def backward(
    fabric: "Fabric",
    model: Any,
    batch: Mapping[str, Tensor],
    accumulate: int,
    weight: Tensor | float = 1.0,
    even: bool = False,
    filler: Filler = zeros,
) -> dict[str, Tensor]:
    """Accumulate the gradients of the batch's mean loss times ``weight`` over ``accumulate`` micro-batches.

    A batch with unreadable images may have fewer micro-batches. With ``even`` it still makes ``accumulate`` passes, as
    FSDP2 gathers weights on all processes together: an empty micro-batch is the first image with weight 0. For an empty
    batch it is the ``filler``, as all processes reduce their gradients together.

    Returns:
        The objective's scalars, averaged over the batch, times ``weight``.
    """
    size = len(next(iter(batch.values())))
    parts = accumulate if even else max(1, min(accumulate, size))
    pieces = zip(*(tensor.tensor_split(parts) for tensor in batch.values()), strict=True)
    spare = {name: tensor[:1] for name, tensor in batch.items()} if size else filler(batch)
    total: dict[str, Tensor] = {}
    for number, piece in enumerate(pieces, 1):
        share = len(piece[0]) / max(1, size)
        inputs = dict(zip(batch, piece, strict=True)) if share else spare
        with fabric.no_backward_sync(model, enabled=number < parts):
            scalars = model(**inputs)
            fabric.backward(scalars["loss"] * share * weight)
        if not share:
            _discard_last(model)
        for name, scalar in scalars.items():
            total[name] = total.get(name, torch.zeros_like(scalar.detach())) + scalar.detach() * share
    return {name: scalar * weight for name, scalar in total.items()}


def _fitting(
    passes: Callable[[int], dict[str, Tensor]],
    accumulate: int,
    more_parts: Callable[[], int] | None,
    optimizer: Any,
    seed: int,
) -> tuple[dict[str, Tensor], int]:
    """What ``passes`` returns, and the micro-batches for which the memory sufficed; each attempt begins alike."""
    if more_parts is None:
        return passes(accumulate), accumulate
    while (values := attempt(partial(passes, accumulate))) is None:
        accumulate = more_parts()
        optimizer.zero_grad()
        torch.manual_seed(seed)
    return values, accumulate


def _discard_last(model: Any) -> None:
    """Let an objective forget what it noted of a filler."""
    for module in model.modules():
        if hasattr(type(module), "discard_last"):  # wrappers pass on the attributes of what they hold
            module.discard_last()


@torch.no_grad()
def _names(model: Any, filler: Mapping[str, Tensor]) -> list[str]:
    """The names of the objective's scalars, for a run whose first steps have no images."""
    names = list(model(**filler))
    _discard_last(model)
    return names


def clip(fabric: "Fabric", model: Any, optimizer: Any, limit: float | None) -> Tensor:
    """Clip the gradients to the L2 norm ``limit``, unless that is None. Returns the norm before."""
    bound = float("inf") if limit is None else limit
    norm = fabric.clip_gradients(model, optimizer, max_norm=bound, error_if_nonfinite=False)
    assert norm is not None  # only clipping by value returns None
    return full_tensor(norm)


def _set_lr(optimizer: Any, lr: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    return lr


def _state(objective: nn.Module, optimizer: torch.optim.Optimizer, ema: Mapping[str, Tensor]) -> dict[str, Tensor]:
    moments = optimizer.state_dict()["state"]
    return {
        **prefixed("model", objective.state_dict().items()),
        **prefixed("ema", ema.items()),
        **prefixed("optimizer", ((f"{i}/{name}", t) for i, state in moments.items() for name, t in state.items())),
    }


def _restore(objective: nn.Module, optimizer: torch.optim.Optimizer, ema: Mapping[str, Tensor], run: Run) -> int:
    """Load the run's last checkpoint. Returns its completed steps; 0 if there is none."""
    checkpoint = run.checkpoint
    if checkpoint is None:
        return 0
    tensors = {**prefixed("model", objective.state_dict().items()), **prefixed("ema", ema.items())}
    saved = {name: shape for name, shape in checkpoint.shapes.items() if not name.startswith("optimizer/")}
    if saved != {name: tuple(tensor.shape) for name, tensor in tensors.items()}:
        raise MapetError(f"{run.last} does not match the run's recipe and tokens: restore the one that was changed.")
    for name, tensor in tensors.items():
        load_shard(tensor, checkpoint, name)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name in checkpoint.shapes.keys() - tensors.keys():
        _, index, key = name.split("/")
        state.setdefault(int(index), {})[key] = _moment(checkpoint, name, parameters[int(index)])
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return checkpoint.step


def _moment(checkpoint: Checkpoint, name: str, parameter: Tensor) -> Tensor:
    """One entry of the optimiser's state: a scalar, or a tensor like the parameter, on its device."""
    return (
        load_shard(torch.empty_like(parameter), checkpoint, name) if checkpoint.shapes[name] else checkpoint.read(name)
    )
