"""Lloyd's iterations: ours and faiss, with the same vectors and initial centroids, in alternating rounds.

python benchmarks/kmeans.py --vectors 1000000 --width 1024 --codes 8192 --iterations 1
python benchmarks/kmeans.py --vectors 1000000 --width 1024 --codes 8192 --iterations 20 --device cuda --rounds 1

An iteration is one assignment of all vectors and one update of all centroids. faiss (its Clustering over IndexFlatL2)
always runs on the CPU. Both initial objectives must agree, or nothing is timed.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import torch
from torch import Tensor

from mapet.tokenizers.kmeans import kmeans
from mapet.tokenizers.kmeans_init import sampled

TOLERANCE = 1e-3  # of the objectives, relative


class Round(NamedTuple):
    wall: float
    processor: float
    memory: float  # increase of the peak in GiB; NaN if the system does not report it
    objective: float  # mean squared distance at the first assignment


def features(count: int, width: int) -> Tensor:
    """(count, width) float32 around 4,096 centres, with decreasing variance per channel, as a teacher's features."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.arange(1, width + 1).pow(-0.5)
    middles = torch.randn(4096, width, generator=generator) * spread
    vectors = torch.empty(count, width)
    for part in vectors.split(1 << 16):
        torch.randn(part.shape, generator=generator, out=part)
        part.mul_(spread).add_(middles[torch.randint(4096, (len(part),), generator=generator)])
    return vectors


def ours(vectors: Tensor, start: Tensor, iterations: int, precision: str) -> float:
    """Run ``iterations`` assignments and updates; returns the initial objective."""
    found = kmeans(vectors, start, iterations=iterations - 1, precision=precision)
    if vectors.is_cuda:
        torch.cuda.synchronize()
    return found.objective[0]


def theirs(vectors: Tensor, start: Tensor, iterations: int) -> float:
    """The same by faiss; nothing is subsampled."""
    k, width = start.shape
    training = faiss.Clustering(width, k)
    training.niter, training.max_points_per_centroid, training.min_points_per_centroid = iterations, 1 << 30, 1
    faiss.copy_array_to_vector(start.numpy().ravel(), training.centroids)
    training.train(vectors.numpy(), faiss.IndexFlatL2(width))
    return training.iteration_stats.at(0).obj / len(vectors)


def timed(work: Callable[[], float]) -> Round:
    before = reset_peak()
    began, spent = time.perf_counter(), time.process_time()
    objective = work()
    wall, processor = time.perf_counter() - began, time.process_time() - spent
    return Round(wall, processor, (resident("VmHWM") - before) / 2**30, objective)


def reset_peak() -> float:
    """Bytes in use, from which Linux counts the peak anew."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return float("nan")
    return resident("VmRSS")


def resident(name: str) -> float:
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), float("nan"))


def compare(o: argparse.Namespace) -> dict[str, list[Round]]:
    """All rounds, ours and faiss in turn."""
    vectors = features(o.vectors, o.width)
    start = sampled(vectors, o.codes, seed=1)
    near, start_near = vectors.to(o.device), start.to(o.device)
    rounds: dict[str, list[Round]] = {"ours": [], "faiss": []}
    for turn in range(o.rounds):
        rounds["ours"].append(timed(lambda: ours(near, start_near, o.iterations, o.precision)))
        rounds["faiss"].append(timed(lambda: theirs(vectors, start, o.faiss_iterations)))
        a, b = rounds["ours"][-1].objective, rounds["faiss"][-1].objective
        if abs(a - b) > TOLERANCE * b:
            sys.exit(f"round {turn}: the objectives {a} and {b} disagree")
        print(f"round {turn}: ours {rounds['ours'][-1].wall:.2f} s, faiss {rounds['faiss'][-1].wall:.2f} s", flush=True)
    return rounds


def medians(rounds: dict[str, list[Round]], longer: float = 1.0) -> dict[str, Any]:
    """Of all rounds; ``longer``: how many iterations of ours there are for one of faiss's."""
    found: dict[str, Any] = {
        name: {
            field: statistics.median(getattr(one, field) for one in each) for field in ("wall", "processor", "memory")
        }
        for name, each in rounds.items()
    }
    found["faiss / ours"] = longer * found["faiss"]["wall"] / found["ours"]["wall"]
    return found


def runtime(device: str) -> str:
    """Processor, cores, threads, versions and load, in words."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
    gpu = f"{torch.cuda.get_device_name()}, " if device == "cuda" else ""
    versions = f"torch {torch.__version__}, faiss {faiss.__version__}, load {os.getloadavg()[0]:.1f}"
    threads = f"{torch.get_num_threads()} threads of ours and {faiss.omp_get_max_threads()} of faiss"
    return f"{gpu}{cpu}, {os.cpu_count()} cores, {threads}, {versions}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--codes", type=int, default=8192)
    parser.add_argument("--iterations", type=int, default=1)
    parser.add_argument("--faiss-iterations", type=int, help="fewer for faiss: its time is scaled in the ratio")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="of ours; faiss stays on the CPU")
    parser.add_argument("--precision", choices=["float32", "tf32", "bfloat16"], default="float32", help="of ours")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round here")
    chosen = parser.parse_args()
    chosen.faiss_iterations = chosen.faiss_iterations or chosen.iterations
    return chosen


def main() -> None:
    o = arguments()
    print(f"{datetime.now(UTC):%Y-%m-%d}, {runtime(o.device)}\n`{shlex.join(['python', *sys.argv])}`\n")
    rounds = compare(o)
    found = medians(rounds, o.iterations / o.faiss_iterations)
    print("\n| | wall, s | processor, s | peak memory beyond the vectors, GiB |\n|---|---|---|---|")
    for name in rounds:
        one = found[name]
        print(f"| {name} | {one['wall']:.2f} | {one['processor']:.2f} | {one['memory']:.2f} |")
    print(f"\nfaiss / ours: **{found['faiss / ours']:.2f}**")
    if o.json:
        each = {name: [one._asdict() for one in all_rounds] for name, all_rounds in rounds.items()}
        report = {"machine": runtime(o.device), "settings": {**vars(o), "json": str(o.json)}, **found, "rounds": each}
        o.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
