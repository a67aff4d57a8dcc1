"""What this machine does in a second of each kind of work that a training step consists of, measured one by one."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mapet.api.benchmark.clock import timed
from mapet.engine.optim import adamw
from mapet.method.cross_entropy import chunked_cross_entropy
from mapet.method.pattern import mapet
from mapet.utils.linear import Linear, linear

BACKWARD = 3  # forward and backward pass in units of a forward pass, as ``method/cost.py`` counts them
HEAD = 64  # channels of an attention head in all named models
VOCABULARY = 8192
SQUARE = {"cpu": 1024, "cuda": 8192}  # side of the large square product
ROWS = {"cpu": 2048, "cuda": 32768}  # rows of a batch
PARAMETERS = {"cpu": 1 << 22, "cuda": 1 << 26}


@dataclass(frozen=True)
class Rates:
    """Units a second, forward and backward together counted as three times the forward pass.

    Attributes:
        device: "cpu" or "cuda".
        precision: "float32" or "bfloat16" (mixed).
        width: of the model whose shapes were used.
        peak: floating-point operations of the fastest matrix product, forward alone.
        linear: floating-point operations of a block's products with weights.
        attention: floating-point operations of attention in which every row reads every row.
        masked: the same, of the attention of MaPeT.
        states: values of the row state through all of a block except its matrix products.
        scores: values of logits through the loss.
        parameters: parameters through clipping and optimiser.
    """

    device: str
    precision: str
    width: int
    peak: float
    linear: float
    attention: float
    masked: float
    states: float
    scores: float
    parameters: float


def measure(width: int, precision: str, device: torch.device, seconds: float = 0.1, rows: int | None = None) -> Rates:
    """All rates for models of ``width``, about ``seconds`` for each of them; of several timings the fastest counts.

    Fewer ``rows`` in a batch than ``ROWS`` make each slower: what an operation costs by itself is shared by fewer.

    Raises:
        RuntimeError: from torch, where the device lacks the memory or the precision.
    """
    rows, parameters = min(rows or ROWS[device.type], ROWS[device.type]), PARAMETERS[device.type]

    def rate(amount: float, work: Callable[[], object]) -> float:
        return amount / min(timed(work, device, seconds))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        attention = [_attention(width, precision, device, masked) for masked in (False, True)]
        return Rates(
            device=device.type,
            precision=precision,
            width=width,
            peak=peak(width, precision, device, seconds),
            linear=rate(2 * BACKWARD * rows * 12 * width**2, _linear(width, rows, precision, device)),
            attention=rate(*attention[0]),
            masked=rate(*attention[1]),
            states=rate(BACKWARD * rows * width, _states(width, rows, precision, device)),
            scores=rate(BACKWARD * rows // 4 * VOCABULARY, _scores(rows // 4, precision, device)),
            parameters=rate(parameters, _update(parameters, device)),
        )


def median(several: Sequence[Rates]) -> Rates:
    """Each rate's median among measurements of the same machine, whose speed may change from one to the next."""
    rates = [one.name for one in fields(Rates) if one.type is float]
    return replace(several[0], **{name: statistics.median(getattr(one, name) for one in several) for name in rates})


def peak(width: int, precision: str, device: torch.device, seconds: float = 0.1) -> float:
    """Floating-point operations a second of the fastest of several products: a ViT's of that width, and a square."""
    rows, side = ROWS[device.type], SQUARE[device.type]
    shapes = [(rows, width, 4 * width), (rows, 4 * width, width), (rows, width, 3 * width), (side, side, side)]
    return max(
        2 * count * inner * outer / min(timed(_product(count, inner, outer, precision, device), device, seconds))
        for count, inner, outer in shapes
    )


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 autocast, or nothing for float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def _product(count: int, inner: int, outer: int, precision: str, device: torch.device) -> Callable[[], Tensor]:
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    rows, weight = (torch.randn(n, inner, dtype=dtype, device=device) for n in (count, outer))
    return lambda: linear(rows, weight)


def _passes(forward: Callable[[], list[Tensor]], leaves: Sequence[Tensor]) -> Callable[[], None]:
    """Forward and backward pass. No gradient stays at a leaf: the next call would add to it, as no step does."""
    above = [torch.ones_like(out) for out in forward()]

    def work() -> None:
        torch.autograd.grad(forward(), leaves, above)

    return work


def _linear(width: int, rows: int, precision: str, device: torch.device) -> Callable[[], None]:
    """The products with weights of one block, forward and backward."""
    sizes = [(width, width), (width, 2 * width), (width, width), (width, 4 * width), (4 * width, width)]
    layers = [Linear(*size, device=device) for size in sizes]
    inputs = [torch.randn(rows, inner, device=device, requires_grad=True) for inner, _ in sizes]

    def forward() -> list[Tensor]:
        with autocast(precision, device):
            return [layer(given) for layer, given in zip(layers, inputs, strict=True)]

    return _passes(forward, [*inputs, *_parameters(layers)])


def _attention(width: int, precision: str, device: torch.device, masked: bool) -> tuple[float, Callable[[], None]]:
    """Floating-point operations, and what does them."""
    visible = mapet(196, 147).visible.to(device)
    visible = visible[:, visible.any(dim=0)]
    (rows, keys), images = visible.shape, max(1, ROWS[device.type] // 512)
    heads, dtype = max(1, width // HEAD), torch.bfloat16 if precision == "bfloat16" else torch.float32
    q, k, v = (
        torch.randn(images, n, heads, HEAD, dtype=dtype, device=device).transpose(1, 2).requires_grad_()
        for n in (rows, keys, keys)
    )

    def forward() -> list[Tensor]:
        return [F.scaled_dot_product_attention(q, k, v, attn_mask=visible if masked else None)]

    return 2 * BACKWARD * images * heads * 2 * rows * keys * HEAD, _passes(forward, [q, k, v])


def _states(width: int, rows: int, precision: str, device: torch.device) -> Callable[[], None]:
    """Norms, residual sums, activation and the copy that joins heads, forward and backward."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    norms = [nn.LayerNorm(width, eps=1e-6, device=device) for _ in range(2)]
    state = torch.randn(rows, width, device=device, requires_grad=True)
    reads = [torch.randn(rows, width, dtype=dtype, device=device, requires_grad=True) for _ in range(2)]
    inner = torch.randn(rows, 4 * width, dtype=dtype, device=device, requires_grad=True)
    heads = max(1, width // HEAD)

    def forward() -> list[Tensor]:
        x, outs = state, []
        with autocast(precision, device):
            for norm, read in zip(norms, reads, strict=True):
                outs.append(norm(x))
                x = x + read
            return [*outs, x, F.gelu(inner), reads[0].view(rows, heads, -1).transpose(0, 1).contiguous()]

    return _passes(forward, [state, *reads, inner, *_parameters(norms)])


def _scores(predicted: int, precision: str, device: torch.device) -> Callable[[], None]:
    """Scores and their gradient, by a head whose products are as good as nothing."""
    rows, head = (
        torch.randn(1, predicted, 1, device=device, requires_grad=True),
        nn.Linear(1, VOCABULARY, device=device),
    )
    target = torch.randint(VOCABULARY, (1, predicted), device=device)

    def forward() -> list[Tensor]:
        with autocast(precision, device):
            return [chunked_cross_entropy(rows, head, target)[0]]

    return _passes(forward, [rows, *head.parameters()])


def _parameters(modules: Iterable[nn.Module]) -> list[Tensor]:
    return [parameter for module in modules for parameter in module.parameters()]


def _update(parameters: int, device: torch.device) -> Callable[[], None]:
    """Clipping and AdamW over matrices of 2¹⁶ parameters."""
    holder = nn.ParameterList(torch.randn(256, 256, device=device) for _ in range(parameters >> 16))
    optimizer = adamw(holder, weight_decay=0.05, betas=(0.9, 0.999))
    for parameter in holder:
        parameter.grad = torch.randn_like(parameter)

    def work() -> None:
        torch.nn.utils.clip_grad_norm_(holder.parameters(), 3.0)
        optimizer.step()

    return work
