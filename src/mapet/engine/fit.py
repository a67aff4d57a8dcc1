"""The one training loop: pre-training, fine-tuning, probes and segmentation all pass through ``fit``.

It knows no objective: a batch is a dict of tensors that the objective takes by name, the answer a dict of scalars of
which ``"loss"`` is minimised. Every step is a pure function of (weights, optimiser state, step), so a run that was
interrupted anywhere ends bit-equal to one that was not.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from mapet.engine.checkpoint import Checkpoint
from mapet.engine.distributed import Stopped, agreed, interruptible
from mapet.engine.metrics import MetricsLogger
from mapet.engine.optim import Optim, average
from mapet.engine.progress import Meter
from mapet.engine.run import Run, prefixed
from mapet.engine.sharding import fill, hand_over, mine, set_up, whole
from mapet.utils.errors import MapetError
from mapet.utils.rng import random_bits

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SALT = 5
SAVE_SECONDS = 600.0  # a checkpoint at least this often, however long an epoch is


class Batches(Protocol):
    """A training stream that can begin at any step."""

    @property
    def steps(self) -> int:
        """Steps in all."""
        ...

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one epoch."""
        ...

    def __call__(self, start: int) -> Iterator[dict[str, Tensor]]:
        """The batches of the steps ``start``, ``start + 1``, …, each this process's share of the global batch."""
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
    save_every: int = 0,
    compiled: bool = False,
    grad_checkpointing: bool = False,
    label: str = "pretrain",
    describe: Callable[[Mapping[str, float]], str] = lambda figures: f"loss {figures['loss']:.3f}",
) -> Run:
    """Train ``objective`` in place from the run's last checkpoint, or from the start, to the end of ``batches``.

    Args:
        objective: ``forward(**batch) -> {"loss": scalar, ...}``.
        batches: the training stream.
        optim: optimiser, learning rate, clipping, averaging.
        fabric: launched; brings device, precision and processes.
        run: where metrics and checkpoints go.
        seed: of all chance that the objective draws from torch's generator.
        accumulate: parts into which each process cuts its batch to save memory; gradients are the same. All processes
            must give the same number.
        save_every: keep a checkpoint of its own every so many steps; 0 for none. The last one is always there.
        compiled: whether to pass the objective through ``torch.compile``.
        grad_checkpointing: whether blocks are computed again in the backward pass, to save memory.
        label: how the progress line begins.
        describe: figures of recent steps → text for the progress line.

    Raises:
        MapetError: the loss or the gradient is no longer finite; the last checkpoint stays as it was.
        Stopped: SIGINT or SIGTERM came; a checkpoint of the last step is written.
    """
    trained, model, optimizer = set_up(fabric, objective, optim.optimizer, compiled, grad_checkpointing)
    ema = {name: p.detach().clone() for name, p in trained.named_parameters()} if optim.ema_decay else {}
    start = _restore(trained, optim.optimizer, ema, run)
    journal = MetricsLogger(run, fabric, batches.steps_per_epoch, start)
    saved = time.monotonic()

    def save(step: int) -> None:
        nonlocal saved
        journal.flush()
        state, keep = _state(trained, optim.optimizer, ema), bool(save_every) and step % save_every == 0
        if trained is not objective:
            rank, count = fabric.global_rank, fabric.world_size
            run.save_parts(step, mine(state, rank), rank=rank, count=count, barrier=fabric.barrier, keep=keep)
        elif fabric.is_global_zero:
            run.save(step, state, keep=keep)
        fabric.barrier()
        journal.note_time(step)
        saved = time.monotonic()

    meter = Meter(label, batches.steps, start)
    with interruptible() as signalled, journal, meter:
        trained.train()
        for step, batch in enumerate(journal.timed(batches(start)), start + 1):
            torch.manual_seed(int(random_bits(seed, SALT, step, fabric.global_rank)))
            lr = _set_lr(optimizer, optim.lr(step - 1))
            figures = backward(fabric, model, batch, accumulate, even=trained is not objective)
            figures["grad_norm"] = clip(fabric, model, optimizer, optim.clip_grad)
            journal.record(step, lr, figures, images=len(next(iter(batch.values()))))
            optimizer.step()
            optimizer.zero_grad()
            if optim.ema_decay:
                average(ema, trained, optim.ema_decay)
            number, late = agreed(fabric, step, signalled(), time.monotonic() - saved > SAVE_SECONDS)
            if number or late or step % (save_every or batches.steps_per_epoch) == 0 or step == batches.steps:
                save(step)
            if number:
                raise Stopped(number, step)
            if fabric.is_global_zero and journal.rows and meter.due(step):
                meter.update(step, f"{describe(journal.recent())}  {journal.pace()}")
    if ema or trained is not objective:
        hand_over({**trained.state_dict(), **ema}, objective)
    return run


def backward(
    fabric: "Fabric", model: Any, batch: Mapping[str, Tensor], accumulate: int, even: bool = False
) -> dict[str, Tensor]:
    """Gradients of the batch's mean loss, in ``accumulate`` parts; the parts' figures, weighted by their size.

    A batch that lacks images may have fewer parts. With ``even`` it still makes as many passes as those of the other
    processes, which gather the weights together: an empty part is the first image, with no weight.
    """
    size = len(next(iter(batch.values())))
    if not size:
        raise MapetError("None of a step's images could be read: see unreadable-images.txt in the run's folder.")
    parts = accumulate if even else min(accumulate, size)
    pieces = zip(*(tensor.tensor_split(parts) for tensor in batch.values()), strict=True)
    total: dict[str, Tensor] = {}
    for number, piece in enumerate(pieces, 1):
        share = len(piece[0]) / size
        seen = piece if share else [tensor[:1] for tensor in batch.values()]
        with fabric.no_backward_sync(model, enabled=number < parts):
            figures = model(**dict(zip(batch, seen, strict=True)))
            fabric.backward(figures["loss"] * share)
        for name, figure in figures.items():
            total[name] = total.get(name, torch.zeros_like(figure.detach())) + figure.detach() * share
    return total


def clip(fabric: "Fabric", model: Any, optimizer: Any, limit: float | None) -> Tensor:
    """The L2 norm of all gradients; scaled down to ``limit`` where there is one."""
    bound = float("inf") if limit is None else limit
    norm = fabric.clip_gradients(model, optimizer, max_norm=bound, error_if_nonfinite=False)
    assert norm is not None  # only clipping by value gives none
    return whole(norm)


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
    """Completed steps of the run, all state loaded; 0 for a fresh one."""
    checkpoint = run.checkpoint
    if checkpoint is None:
        return 0
    own = {**prefixed("model", objective.state_dict().items()), **prefixed("ema", ema.items())}
    there = {name: shape for name, shape in checkpoint.shapes.items() if not name.startswith("optimizer/")}
    if there != {name: tuple(tensor.shape) for name, tensor in own.items()}:
        raise MapetError(f"{run.last} does not fit its recipe and tokens: was one of them changed?")
    for name, tensor in own.items():
        fill(tensor, checkpoint, name)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name in checkpoint.shapes.keys() - own.keys():
        _, index, key = name.split("/")
        state.setdefault(int(index), {})[key] = _moment(checkpoint, name, parameters[int(index)])
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return checkpoint.step


def _moment(checkpoint: Checkpoint, name: str, parameter: Tensor) -> Tensor:
    """What the optimiser keeps: a number, or as many as the parameter has, where the parameter has them."""
    return fill(torch.empty_like(parameter), checkpoint, name) if checkpoint.shapes[name] else checkpoint.read(name)
