"""One training step (forward and backward) of MaPeT: this package beside a dense two-stream reference.

The reference computes what the published implementation computes, in its way: a content stream of all positions and
all placeholders, a query stream of the hidden patches, ``q`` apart from ``kv``, additive float32 masks for every image
and head that come with the batch, an explicit softmax, and a last block that updates both streams. Both models hold
equal weights, and their losses are compared before anything is timed. Timed rounds alternate, and each round runs both.

    python benchmarks/step.py --batch 8 --rounds 5 --json step.json
"""

import argparse
import copy
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mapet.method.encoder import SIZES, Attention, Block, Encoder
from mapet.method.order import uniform
from mapet.method.pattern import mapet
from mapet.method.predict import TokenPrediction

VOCABULARY = 8192
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # of the loss, relative


class DenseAttention(nn.Module):
    """Attention of two streams to the content stream, every score computed and kept."""

    def __init__(self, ours: Attention) -> None:
        super().__init__()
        dim = ours.proj.in_features
        self.heads, self.scale = ours.heads, (dim // ours.heads) ** -0.5
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), copy.deepcopy(ours.proj)
        self.q.load_state_dict({name: tensor[:dim] for name, tensor in ours.qkv.state_dict().items()})
        self.kv.load_state_dict({name: tensor[dim:] for name, tensor in ours.qkv.state_dict().items()})

    def forward(
        self, content: Tensor, query: Tensor, content_mask: Tensor, query_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Content (B, N + M, D) and query rows (B, M, D), masks (B, H, rows, N + M) → what each row read."""
        k, v = map(self._split, self.kv(content).chunk(2, dim=-1))
        return self._read(content, k, v, content_mask), self._read(query, k, v, query_mask)

    def _read(self, rows: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        scores = self._split(self.q(rows)) @ k.transpose(-2, -1) * self.scale + mask
        read = scores.softmax(dim=-1).to(v.dtype) @ v
        return self.proj(read.transpose(1, 2).flatten(2))

    def _split(self, rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class DenseBlock(nn.Module):
    """A block over both streams; they share every weight."""

    def __init__(self, ours: Block) -> None:
        super().__init__()
        self.norm1, self.norm2, self.ls1, self.ls2, self.mlp = (
            copy.deepcopy(module) for module in (ours.norm1, ours.norm2, ours.ls1, ours.ls2, ours.mlp)
        )
        self.attn = DenseAttention(ours.attn)

    def forward(self, streams: tuple[Tensor, Tensor], masks: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Both streams in, both streams out."""
        reads = self.attn(*(self.norm1(stream) for stream in streams), *masks)
        streams = tuple(stream + self.ls1(read) for stream, read in zip(streams, reads, strict=True))
        return tuple(stream + self.ls2(self.mlp(self.norm2(stream))) for stream in streams)


class Dense(nn.Module):
    """The two-stream reference, with a copy of the weights of ``ours``."""

    def __init__(self, ours: TokenPrediction) -> None:
        super().__init__()
        self.encoder, self.mask_token, self.head = (
            copy.deepcopy(part) for part in (ours.encoder, ours.mask_token, ours.head)
        )
        self.encoder.blocks = nn.ModuleList(DenseBlock(block) for block in ours.encoder.blocks)

    def logits(self, images: Tensor, predicted: Tensor, masks: tuple[Tensor, Tensor]) -> Tensor:
        """(B, M, V) for the positions ``predicted`` (B, M), ascending, as in the published implementation."""
        positions = self.encoder.pos_embed
        placeholders = self.mask_token + F.embedding(predicted, positions[0])
        streams = (torch.cat([self.encoder.embed(images) + positions, placeholders], dim=1), placeholders)
        for block in self.encoder.blocks:
            streams = block(streams, masks)
        _, query = (self.encoder.norm(stream) for stream in streams)
        return self.head(query)

    def forward(
        self, images: Tensor, tokens: Tensor, predicted: Tensor, content_mask: Tensor, query_mask: Tensor
    ) -> Tensor:
        """Mean cross-entropy over vocabulary-first scores, picked by a boolean that here keeps all of them."""
        logits = self.logits(images, predicted, (content_mask, query_mask))
        picked = logits.permute(2, 0, 1)[:, torch.ones_like(predicted, dtype=torch.bool)]
        scores = picked.view(-1, *predicted.shape).transpose(0, 1)
        return F.cross_entropy(scores.float(), tokens.gather(1, predicted - 1))


def predicted_positions(order: Tensor, context: int) -> Tensor:
    """(B, M) the hidden positions of each image, ascending."""
    return order[:, context:].sort(dim=1).values


def dense_masks(order: Tensor, context: int, heads: int) -> tuple[Tensor, Tensor]:
    """Additive float32 masks (B, H, N + M, N + M) and (B, H, M, N + M), in memory for every image and head.

    A row that knows places up to e reads the patches of these places, and the placeholders of later ones.
    """
    place = order.argsort(dim=1)
    hidden = place.gather(1, predicted_positions(order, context))

    def additive(known: Tensor) -> Tensor:
        known = known.clamp(min=context - 1)[:, :, None]
        seen = torch.cat([place[:, None] <= known, hidden[:, None] > known], dim=2)
        mask = torch.zeros(seen.shape, device=order.device).masked_fill(~seen, -torch.inf)
        return mask[:, None].repeat(1, heads, 1, 1)

    return additive(torch.cat([place, torch.zeros_like(hidden)], dim=1)), additive(hidden - 1)


class Pair(NamedTuple):
    """Both models as functions without arguments from nothing to the loss, on one batch."""

    ours: Callable[[], Tensor]
    dense: Callable[[], Tensor]
    models: tuple[TokenPrediction, Dense]


def build(encoder: Encoder, hidden: int, vocabulary: int, batch: int, device: str, compiled: bool) -> Pair:
    """Equal weights, and one random batch with an order for each image."""
    torch.manual_seed(0)
    ours = TokenPrediction(encoder, mapet(encoder.length, hidden), vocabulary).to(device)
    dense = Dense(ours)
    order = uniform(encoder.grid, hidden, 0, 0, torch.arange(batch, device=device))
    images = torch.randn(batch, encoder.in_chans, *encoder.img_size, device=device)
    tokens = torch.randint(vocabulary, (batch, encoder.length), device=device)
    context = ours.pattern.context
    predicted, masks = predicted_positions(order, context), dense_masks(order, context, encoder.num_heads)
    fast, slow = (torch.compile(ours), torch.compile(dense)) if compiled else (ours, dense)
    return Pair(
        lambda: fast(images, tokens, order)["loss"],
        lambda: slow(images, tokens, predicted, *masks),
        (ours, dense),
    )


def check_equal(pair: Pair, precision: str, device: str) -> None:
    """Stop unless both give the same loss: a comparison of speed is worth nothing otherwise."""
    with torch.no_grad(), autocast(precision, device):
        ours, dense = pair.ours().item(), pair.dense().item()
    if not abs(ours - dense) <= TOLERANCE[precision] * dense:
        raise SystemExit(f"The two models disagree: loss {ours} and {dense}.")


def autocast(precision: str, device: str) -> AbstractContextManager[Any]:
    """bfloat16 autocast, or nothing for float32."""
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")


class Spent(NamedTuple):
    """Seconds on the wall, and of all this process's threads together (less touched by what else is running)."""

    wall: float
    processor: float


def step(loss: Callable[[], Tensor], model: nn.Module, precision: str, device: str) -> Spent:
    """One forward and backward pass."""
    model.zero_grad(set_to_none=True)
    synchronize(device)
    wall, processor = time.perf_counter(), time.process_time()
    with autocast(precision, device):
        value = loss()
    value.backward()
    synchronize(device)
    return Spent(time.perf_counter() - wall, time.process_time() - processor)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def compare(pair: Pair, rounds: int, precision: str, device: str) -> tuple[list[Spent], list[Spent]]:
    """What each round cost, ours and dense; one round of each, not counted, warms up (and compiles)."""
    turns = [
        [step(loss, model, precision, device) for loss, model in zip(pair[:2], pair.models, strict=True)]
        for _ in range(1 + rounds)
    ]
    ours, dense = zip(*turns[1:], strict=True)
    return list(ours), list(dense)


def ratio(times: tuple[list[Spent], list[Spent]], clock: str) -> float:
    """Median time of the dense reference over ours, by one of the two clocks."""
    ours, dense = (statistics.median(getattr(spent, clock) for spent in column) for column in times)
    return dense / ours


def row(chosen: argparse.Namespace, compiled: bool, times: tuple[list[Spent], list[Spent]]) -> str:
    """One line of the table."""
    ours, dense = (statistics.median(spent.wall for spent in column) for column in times)
    processor = f"{ratio(times, 'processor'):.2f}" if chosen.device == "cpu" else ""
    return (
        f"| {chosen.size} | {chosen.batch} | {chosen.precision} | {'yes' if compiled else 'no'} | {ours:.3f} "
        f"| {dense:.3f} | **{dense / ours:.2f}** | {processor} | {chosen.rounds} |"
    )


def mask_seconds(order: Tensor, context: int, heads: int, rounds: int) -> float:
    """Median wall time of building the dense masks of a batch on the CPU, as a loader does."""
    spent = []
    for _ in range(rounds):
        start = time.perf_counter()
        dense_masks(order, context, heads)
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def machine(device: str) -> str:
    """Processor, cores, threads, versions and load, in words."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
    gpu = f"{torch.cuda.get_device_name()}, " if device == "cuda" else ""
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{gpu}{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}{load}"


def arguments() -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="vit_base", help="at 224 pixels, patches of 16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if cuda else "cpu")
    parser.add_argument("--batch", type=int, help="images; 8 on a CPU and 64 on CUDA by default")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each model")
    parser.add_argument("--precision", choices=TOLERANCE, help="float32 on a CPU, bfloat16 on CUDA by default")
    parser.add_argument("--compile", choices=["off", "on", "both"], help="off on a CPU, both on CUDA by default")
    parser.add_argument("--include-masks", action="store_true", help="also time building the reference's masks")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's time here")
    chosen = parser.parse_args()
    on_gpu = chosen.device == "cuda"
    chosen.batch = chosen.batch or (64 if on_gpu else 8)
    chosen.precision = chosen.precision or ("bfloat16" if on_gpu else "float32")
    chosen.compile = chosen.compile or ("both" if on_gpu else "off")
    return chosen


def main() -> None:
    chosen = arguments()
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine(chosen.device)}\n`{shlex.join(['python', *sys.argv])}`\n")
    print("| size | batch | precision | compiled | ours, s | dense, s | dense / ours | in processor time | rounds |")
    print("|---|---|---|---|---|---|---|---|---|")
    results: list[dict[str, Any]] = []
    for compiled in {"off": [False], "on": [True], "both": [False, True]}[chosen.compile]:
        encoder = Encoder(**SIZES[chosen.size], init_values=0.1)
        hidden = encoder.length * 3 // 4
        pair = build(encoder, hidden, VOCABULARY, chosen.batch, chosen.device, compiled)
        check_equal(pair, chosen.precision, chosen.device)
        times = compare(pair, chosen.rounds, chosen.precision, chosen.device)
        print(row(chosen, compiled, times), flush=True)
        ours, dense = ([spent._asdict() for spent in column] for column in times)
        results.append({"compiled": compiled, "ratio": ratio(times, "wall"), "ours": ours, "dense": dense})
    if chosen.include_masks:
        order = uniform(encoder.grid, hidden, 0, 0, torch.arange(chosen.batch))
        spent = mask_seconds(order, 1 + encoder.length - hidden, encoder.num_heads, chosen.rounds)
        print(f"\nBuilding the reference's masks on the CPU takes another {spent:.3f} s a batch.")
        results.append({"mask_seconds": spent})
    if chosen.json:
        settings = {**vars(chosen), "json": str(chosen.json)}
        report = {"machine": machine(chosen.device), "settings": settings, "results": results}
        chosen.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
