"""AdamW, cosine schedule with warm-up, and weight averaging; the learning rate is a pure function of the step."""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from mapet.engine.fit import Batches


SHORTENED = 10  # a warm-up that is not shorter than the run becomes this part of it
MOST_INITIAL = 0.01  # share of initial weights in the final moving average, above which a note is logged


@dataclass(frozen=True)
class Optim:
    """How ``fit`` updates the weights.

    Attributes:
        optimizer: optimiser of the objective's parameters.
        lr: step (from 0) → learning rate, multiplied by a parameter group's ``lr_scale`` if it has one.
        clip_grad: maximum L2 norm of all gradients together; None for no clipping.
        ema_decay: decay of an exponential moving average of the weights; None for no average.
    """

    optimizer: torch.optim.Optimizer
    lr: Callable[[int], float]
    clip_grad: float | None = None
    ema_decay: float | None = None


def adamw(
    module: nn.Module,
    *,
    weight_decay: float,
    betas: tuple[float, float],
    no_decay: Iterable[str] = (),
    scale: Callable[[str], float] = lambda name: 1.0,
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101) with the field's rule for weight decay.

    Vectors (biases, norms, layer scale) do not decay, nor do parameters whose last name is in ``no_decay``. The
    published code names ``pos_embed`` and ``cls_token`` and lets the mask vector decay. ``scale`` maps a parameter's
    name to the factor of its learning rate (``lr_scale`` of its group).
    """
    names = set(no_decay)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            exempt = parameter.ndim < 2 or name.rsplit(".", 1)[-1] in names
            groups.setdefault((scale(name), exempt), []).append(parameter)
    settings = [
        {"params": groups[factor, exempt], "weight_decay": 0.0 if exempt else weight_decay, "lr_scale": factor}
        for factor, exempt in sorted(groups)
    ]
    return torch.optim.AdamW(settings, lr=0.0, betas=betas, fused=True)


def layer_scale(depth: int, decay: float) -> Callable[[str], float]:
    """Layer-wise learning rate decay (BEiT): parameter name → factor, for an encoder of ``depth`` blocks.

    The factor is ``decay`` to the number of layers above: 0 for the head and the last norm, ``depth + 1`` for patch
    embedding, position embedding and CLS token.
    """

    def scale(name: str) -> float:
        if block := re.search(r"(?:^|\.)blocks\.(\d+)\.", name):
            return decay ** (depth - int(block[1]))
        rows = re.search(r"(?:^|\.)(patch_embed|pos_embed|cls_token)(\.|$)", name)
        return decay ** (depth + 1) if rows else 1.0

    return scale


def cosine(*, peak: float, floor: float, start: float, warmup: int, total: int) -> Callable[[int], float]:
    """Learning rate by step: linear from ``start`` to ``peak`` over ``warmup`` steps, then half a cosine to ``floor``.

    The last of ``total`` steps has ``floor`` (SGDR without restarts, arXiv 1608.03983).
    """

    def lr(step: int) -> float:
        if step < warmup:
            return start + (peak - start) * step / warmup
        share = (step - warmup) / max(1, total - 1 - warmup)
        return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    return lr


def poly(*, peak: float, floor: float, start: float, warmup: int, total: int, power: float) -> Callable[[int], float]:
    """As ``cosine``, but floor + (peak − floor) · (1 − share)^power after the warm-up, as in mmsegmentation."""

    def lr(step: int) -> float:
        if step < warmup:
            return start + (peak - start) * step / warmup
        share = (step - warmup) / max(1, total - 1 - warmup)
        return floor + (peak - floor) * (1 - min(1.0, share)) ** power

    return lr


@dataclass(frozen=True)
class Schedule:
    """A learning rate by step, which can say what it is. The rate is that of ``cosine`` or ``poly``.

    Attributes:
        peak: the largest rate.
        floor: rate of the last step, at most the peak.
        start: rate of the first step of the warm-up, at most the peak.
        warmup: steps of the warm-up, fewer than ``total``.
        total: steps of the run.
        notes: what differs from the settings, in words.
        power: of the polynomial; None: half a cosine.
    """

    peak: float
    floor: float
    start: float
    warmup: int
    total: int
    notes: tuple[str, ...] = ()
    power: float | None = None

    def __call__(self, step: int) -> float:
        """The rate of a step, from 0."""
        settings = {"peak": self.peak, "floor": self.floor, "start": self.start}
        if self.power is not None:
            return poly(**settings, warmup=self.warmup, total=self.total, power=self.power)(step)
        return cosine(**settings, warmup=self.warmup, total=self.total)(step)

    def __str__(self) -> str:
        shape = "cosine" if self.power is None else f"poly (power {self.power:g})"
        first = f"warm-up {self.warmup:,} step{'s' * (self.warmup != 1)} to " if self.warmup else ""
        return f"{first}{self.peak:.2e}, {shape} to {self(self.total - 1):.2e} at step {self.total:,}"


def scheduled(
    batches: "Batches",
    *,
    peak: float,
    floor: float,
    start: float,
    warmup_epochs: float,
    power: float | None = None,
) -> Schedule:
    """The schedule over a training stream.

    Neither floor nor start exceeds the peak. A warm-up that is not shorter than the run becomes a tenth of it.
    """
    total, notes = batches.steps, []
    warmup = asked = round(warmup_epochs * batches.steps_per_epoch)
    if asked and asked >= total:
        warmup = min(max(1, total // SHORTENED), total - 1)
        now = f"it is shortened to {warmup:,} of {total:,} steps"
        notes.append(f"--warmup-epochs {warmup_epochs:g} is not shorter than the run: {now}")
    if floor > peak:
        notes.append(f"--min-lr {floor:.2e} is above the peak {peak:.2e}: the rate does not decay; lower --min-lr")
    return Schedule(peak, min(floor, peak), min(start, peak), warmup, total, tuple(notes), power)


def initial_share(decay: float | None, steps: int) -> str | None:
    """A note where a moving average still holds over 1 % of the initial weights after ``steps``; None otherwise."""
    share = decay**steps if decay else 0.0
    if share <= MOST_INITIAL:
        return None
    return f"the moving average still holds {share:.0%} of the initial weights at the end; lower --ema-decay"


@torch.no_grad()
def average(ema: dict[str, Tensor], module: nn.Module, decay: float | None) -> None:
    """One step of the moving average, in place: ema ← decay · ema + (1 − decay) · weights; nothing without a decay."""
    if decay is None:
        return
    weights = dict(module.named_parameters())
    torch._foreach_lerp_(list(ema.values()), [weights[name].detach() for name in ema], 1 - decay)
