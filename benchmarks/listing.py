"""What a folder of many images costs before the first step: to list it, to read all ids, and memory.

``python benchmarks/listing.py --images 1000000`` makes hard links to 1,000 tiny images, a folder each, in a temporary
folder, and deletes them afterwards. Times are of a fresh process whose files the system has in memory.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

FOLDERS = 1000
MEASURE = """
import json, resource, sys, time
import torch
from mapet.data.dataset import open_dataset

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

before, began = peak(), time.perf_counter()
source = open_dataset(sys.argv[1])
listed = time.perf_counter()
characters = sum(len(source.image_id(i)) for i in range(len(source)))
ended = time.perf_counter()
print(json.dumps({"images": len(source), "list": listed - began, "ids": ended - listed, "MiB": peak() - before}))
"""


def fill(root: Path, images: int) -> None:
    """Make the folder."""
    for number in range(FOLDERS):
        folder = root / f"n{number:08d}"
        folder.mkdir()
        first = folder / "0.jpeg"
        Image.new("RGB", (32, 32), (number % 256, 0, 0)).save(first)
        for i in range(1, images // FOLDERS):
            os.link(first, folder / f"n{number:08d}_{i}.jpeg")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder), o.images)
        for _ in range(o.rounds):
            run = subprocess.run([sys.executable, "-c", MEASURE, folder], check=True, capture_output=True, text=True)
            found = json.loads(run.stdout)
            times = f"list {found['list']:.2f} s, ids {found['ids']:.2f} s"
            print(f"{found['images']:,} images: {times}, {found['MiB']:.0f} MiB")


if __name__ == "__main__":
    main()
