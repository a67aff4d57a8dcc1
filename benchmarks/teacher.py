"""Seconds and memory for the features of one picture, for any teacher, with random weights.

python benchmarks/teacher.py --teacher resnet50x64_clip.openai --grid 14 --pictures 4
"""

import argparse
import json
import platform
import resource
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

from mapet.hashing import fraction
from mapet.tokenizers.teacher import Teacher


def measure(name: str, grid: int, pictures: int, batch: int) -> dict[str, float | str]:
    """Seconds a picture (median of the batches, the first left out) and the process's peak memory."""
    teacher = Teacher(name, (grid, grid), pretrained=False)
    loaded = peak()
    shape = torch.Size((batch, 3, *teacher.view.size))
    noise = fraction(0, torch.arange(shape.numel())).view(shape).float()
    seconds = []
    for _ in range(1 + pictures // batch):
        began = time.perf_counter()
        features = teacher(noise)
        seconds.append((time.perf_counter() - began) / batch)
    assert features.shape == (batch, grid * grid, teacher.width)
    return {
        "teacher": name,
        "pixels": teacher.view.size[0],
        "features": f"{grid * grid} × {teacher.width}",
        "parameters": sum(p.numel() for p in teacher.parameters()),
        "seconds a picture": statistics.median(seconds[1:]),
        "weights, GiB": loaded,
        "peak, GiB": peak(),
    }


def peak() -> float:
    """The process's largest resident memory so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="resnet50x64_clip.openai")
    parser.add_argument("--grid", type=int, default=14, help="patches a side")
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the result there too")
    o = parser.parse_args()
    found = measure(o.teacher, o.grid, o.pictures, o.batch)
    found |= {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
    for key, value in found.items():
        print(f"{key:<18} {value:,.3f}" if isinstance(value, float) else f"{key:<18} {value}")
    if o.json:
        o.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
