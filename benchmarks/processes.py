"""Training steps of MaPeT with 1, 2, 4 … processes, equal global batch and equal total threads: the cost of sharing.

Each arrangement runs the package's training loop on the same prepared batches; a step is all between two batches:
forward, backward, communication of gradients (with fsdp also of weights), clipping, AdamW and the metrics. All losses
are compared with those of one process, because speeds are only comparable if these agree.

    python benchmarks/processes.py --size vit_tiny --image-size 64 --batch 16 --processes 1 2 4 --json processes.json
"""

import argparse
import csv
import json
import multiprocessing
import os
import platform
import shlex
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mapet.engine.distributed import distributed
from mapet.engine.fit import fit
from mapet.engine.optim import Optim, adamw
from mapet.engine.run import Run
from mapet.method.encoder import SIZES, Encoder
from mapet.method.order import uniform
from mapet.method.pattern import mapet
from mapet.method.predict import TokenPrediction
from mapet.utils.rng import random_bits
from mapet.utils.rng import uniform as random_uniform

VOCABULARY = 8192
WARM = 2  # first steps of a launch that are not counted
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # of the losses


class Way(NamedTuple):
    """How many processes, and how they share."""

    strategy: str
    processes: int


class Spent(NamedTuple):
    """Seconds of a step on the wall, and of all threads of all processes together."""

    wall: float
    processor: float


class Batches:
    """A process's share of random batches, a pure function of the step; notes both clocks when each is asked for."""

    def __init__(self, chosen: argparse.Namespace, rank: int, world: int, device: torch.device) -> None:
        self.steps = self.steps_per_epoch = WARM + chosen.steps + 1  # that the last counted one has an end
        self.asked: list[Spent] = []
        side, grid = chosen.image_size, (chosen.image_size // chosen.patch_size,) * 2
        self.batches = []
        for step in range(self.steps):
            index = torch.arange(chosen.batch, device=device).tensor_split(world)[rank]
            pixels = torch.arange(3 * side**2, device=device)
            images = random_uniform(1, step, index[:, None], pixels).float().view(-1, 3, side, side)
            tokens = random_bits(2, step, index[:, None], torch.arange(grid[0] ** 2, device=device)) % VOCABULARY
            order = uniform(grid, grid[0] ** 2 * 3 // 4, 0, step, index)
            self.batches.append(
                {"images": images, "tokens": tokens, "order": order, "seed": random_bits(3, step, index)}
            )

    def __call__(self, start: int) -> Iterator[dict[str, Tensor]]:
        """The batches; the device has finished the step before when the next is asked for."""
        for batch in self.batches[start:]:
            if batch["images"].is_cuda:
                torch.cuda.synchronize()
            self.asked.append(Spent(time.perf_counter(), time.process_time()))
            yield batch


def objective(chosen: argparse.Namespace) -> TokenPrediction:
    torch.manual_seed(0)
    encoder = Encoder(chosen.image_size, chosen.patch_size, init_values=0.1, **SIZES[chosen.size])
    return TokenPrediction(encoder, mapet(encoder.length, encoder.length * 3 // 4), VOCABULARY)


def work(chosen: argparse.Namespace, way: Way, rank: int, port: str, folder: str) -> None:
    """One process of an arrangement; writes what its steps took into ``folder``."""
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": way.processes, "MASTER_PORT": port}
    os.environ.update(MASTER_ADDR="127.0.0.1", **{name: str(value) for name, value in variables.items()})
    torch.set_num_threads(threads(chosen, way))
    settings = {"accelerator": chosen.device, "devices": way.processes, "precision": chosen.precision}
    with distributed(**settings, strategy=way.strategy) as fabric:
        model = objective(chosen)
        optim = Optim(adamw(model, weight_decay=0.05, betas=(0.9, 0.999)), lambda step: 1e-4, clip_grad=3.0)
        batches = Batches(chosen, rank, way.processes, fabric.device)
        fit(model, batches, optim, fabric, Run(folder))
    pairs = zip(batches.asked[WARM:], batches.asked[WARM + 1 :], strict=False)
    seconds = [(later.wall - earlier.wall, later.processor - earlier.processor) for earlier, later in pairs]
    (Path(folder) / f"seconds-{rank}.json").write_text(json.dumps(seconds))


def threads(chosen: argparse.Namespace, way: Way) -> int:
    """Of each process."""
    return max(1, chosen.threads // way.processes)


def launch(chosen: argparse.Namespace, way: Way) -> tuple[list[Spent], list[float]]:
    """What each counted step took, and all losses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        each = [context.Process(target=work, args=(chosen, way, r, port, folder)) for r in range(way.processes)]
        for process in each:
            process.start()
        for process in each:
            process.join()
        if any(process.exitcode for process in each):
            raise SystemExit(f"{way.processes} processes under {way.strategy} did not end well.")
        losses = [float(row["loss"]) for row in csv.DictReader(Run(folder).metrics.open())]
        found = [json.loads((Path(folder) / f"seconds-{rank}.json").read_text()) for rank in range(way.processes)]
        return [Spent(step[0][0], sum(own for _, own in step)) for step in zip(*found, strict=True)], losses


def ways(chosen: argparse.Namespace) -> list[Way]:
    """One process first; it has no strategy."""
    several = [count for count in chosen.processes if count > 1]
    return [Way("ddp", 1), *(Way(name, count) for count in several for name in chosen.strategies)]


def measure(chosen: argparse.Namespace) -> dict[Way, list[Spent]]:
    """What all counted steps of each arrangement took; rounds alternate, and each runs all of them."""
    for name in ("lightning_fabric.strategies", "torch.distributed.fsdp", "torch.utils.tensorboard"):
        import_module(name)  # once, and not in every process
    found: dict[Way, list[Spent]] = {way: [] for way in ways(chosen)}
    alone: list[float] = []
    for _ in range(chosen.rounds):
        for way, seconds in found.items():
            spent, losses = launch(chosen, way)
            alone = alone or losses
            if not all(abs(a - b) <= TOLERANCE[chosen.precision] for a, b in zip(alone, losses, strict=True)):
                raise SystemExit(f"{way.processes} processes under {way.strategy} disagree: {losses} and {alone}.")
            seconds.extend(spent)
    return found


def table(chosen: argparse.Namespace, found: dict[Way, list[Spent]]) -> list[str]:
    """Markdown; the ratios are to one process. Processor time is less touched by what else is running."""
    one = middle(found[Way("ddp", 1)])
    lines = [
        "| processes | strategy | threads each | ms a step | images/s | × one | processor ms a step | × one |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way, spent in found.items():
        wall, processor = middle(spent)
        name = way.strategy if way.processes > 1 else ""
        speed = f"{1000 * wall:.0f} | {chosen.batch / wall:.1f} | {wall / one.wall:.2f}"
        cost = f"{1000 * processor:.0f} | {processor / one.processor:.2f}"
        lines.append(f"| {way.processes} | {name} | {threads(chosen, way)} | {speed} | {cost} |")
    return lines


def middle(spent: list[Spent]) -> Spent:
    """The median by each clock."""
    return Spent(*(statistics.median(clock) for clock in zip(*spent, strict=True)))


def runtime(chosen: argparse.Namespace) -> str:
    """Processor, cores that may be used, versions and load, in words."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
    gpu = f"{torch.cuda.get_device_name()}, " if chosen.device == "cuda" else ""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = f"{usable} of {os.cpu_count()} cores, {chosen.threads} threads in all"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{gpu}{cpu}, {cores}, torch {torch.__version__}{load}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="vit_tiny")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--patch-size", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16, help="images a step, over all processes together")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], help="each on its GPU where there are")
    parser.add_argument("--strategies", nargs="+", choices=["ddp", "fsdp"], default=["ddp", "fsdp"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of all processes together")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=TOLERANCE, default="float32")
    parser.add_argument("--steps", type=int, default=5, help="counted steps of a launch")
    parser.add_argument("--rounds", type=int, default=3, help="launches of each arrangement")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every step's time here")
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    about = f"{datetime.now(UTC):%Y-%m-%d}, {runtime(chosen)}\n`{shlex.join(['python', *sys.argv])}`"
    found = measure(chosen)
    print(f"\n{about}\n", *table(chosen, found), sep="\n", flush=True)
    if chosen.json:
        settings: dict[str, Any] = {**vars(chosen), "json": str(chosen.json)}
        results = [{**way._asdict(), "steps": [one._asdict() for one in spent]} for way, spent in found.items()]
        report = {"machine": about.split("\n", 1)[0], "settings": settings, "results": results}
        chosen.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
