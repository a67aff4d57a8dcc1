"""Loading: images/s of a training stream from a folder of photographs, its packs, and memory or the device.

Images of photographic size are made first: CIFAR-10 enlarged to 500 x 375, with seeded noise that gives a JPEG of
quality 95 the size of a photograph's, about 110 KB (or give your own with --data). Both packs are made of them, and the
first batch from the uint8 pack must equal that from the folder bit for bit before anything is timed. Rounds alternate
over all ways of loading; each reads whole shuffled epochs, one where images are decoded and --epochs where they are
not. Workers are started and ended within the time. The images are in the page cache (unless they do not fit), so this
is the price of decoding and copying, not of the disk.

    taskset -c 1 python benchmarks/loading.py --folder DIR
    python benchmarks/loading.py --folder DIR --workers 0 2 --json loading.json
"""

import argparse
import json
import logging
import os
import platform
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from mapet.api.pack import pack
from mapet.data.crop import Crops
from mapet.data.dataset import ImageDataset, open_dataset
from mapet.data.loader import Shuffled
from mapet.data.packed import IMAGES
from mapet.data.unreadable import UnreadableImages
from mapet.utils.view import CenterCropResize

WIDTH, HEIGHT, QUALITY, NOISE = 500, 375, 95, 12
SCALE = (0.2, 1.0)  # of random crops


class Way(NamedTuple):
    data: str
    view: str
    workers: int
    stream: Shuffled


class Round(NamedTuple):
    images: int
    wall: float
    processor: float  # of this process and its workers


def photographs(folder: Path, count: int) -> None:
    """Fill the folder with images, unless it has them already."""
    source = open_dataset("cifar10")
    folder.mkdir(parents=True, exist_ok=True)
    for place in range(count):
        path = folder / f"{place:05d}.jpg"
        if not path.exists():
            image = source.read(place).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
            noise = np.random.default_rng(place).normal(0, NOISE, (HEIGHT, WIDTH, 3))
            noisy = (np.asarray(image) + noise).round().clip(0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(path.with_suffix(".part"), "JPEG", quality=QUALITY)
            path.with_suffix(".part").replace(path)


def packs(data: Path, folder: Path, size: int) -> dict[str, tuple[ImageDataset, float]]:
    """Each source by name, with its bytes an image."""
    original = open_dataset(str(data))
    found = {"folder": (original, sum(os.path.getsize(data / original.image_id(i)) for i in range(len(original))))}
    for form in ("jpeg", "uint8"):
        out = folder / f"{form}-{size}"
        pack(data, out, form=form, size=size, workers=0)
        found[f"{form} pack"] = (open_dataset(str(out)), (out / IMAGES).stat().st_size)
    return {name: (source, size / len(source)) for name, (source, size) in found.items()}


def ways(sources: dict[str, tuple[ImageDataset, float]], o: argparse.Namespace) -> Iterator[Way]:
    """All ways of loading that are compared."""
    for data, (source, _) in sources.items():
        for crops in (None, Crops(0, SCALE, hflip=0.5)):
            if data == "uint8 pack" and crops:
                continue
            for workers in o.workers if data != "uint8 pack" else [0]:
                epochs = 1 if data != "uint8 pack" else o.epochs
                loaded = stream(source, o, crops=crops, workers=workers, epochs=epochs)
                yield Way(data, "random crops" if crops else "centre", workers, loaded)
    source, _ = sources["uint8 pack"]
    held = stream(source, o, epochs=o.epochs, memory=1 << 50, device=o.device)
    yield Way(f"held on {o.device}", "centre", 0, held)


def stream(source: ImageDataset, o: argparse.Namespace, **settings: Any) -> Shuffled:
    default = {"batch_size": o.batch, "epochs": 1, "seed": 0, "bad": UnreadableImages(len(source)), "memory": 0}
    return Shuffled(source, CenterCropResize((o.size, o.size)), **{**default, **settings})


def check_equal(sources: dict[str, tuple[ImageDataset, float]], o: argparse.Namespace) -> None:
    ours, theirs = (next(stream(sources[name][0], o)()) for name in ("uint8 pack", "folder"))
    if not (torch.equal(ours.images, theirs.images) and torch.equal(ours.index, theirs.index)):
        sys.exit("the uint8 pack and the folder disagree")


def timed(way: Way) -> Round:
    """All batches of a stream; of one that is held, after it was read into memory."""
    if way.stream.held:
        next(way.stream())
    spent, began, images = processor(), time.perf_counter(), 0
    for batch in way.stream():
        images += len(batch.index)
    if torch.device(way.stream.device).type == "cuda":
        torch.cuda.synchronize()
    return Round(images, time.perf_counter() - began, processor() - spent)


def processor() -> float:
    """Seconds of this process and of its workers that have ended."""
    workers = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + workers.ru_utime + workers.ru_stime


def row(way: Way, size: float, rounds: list[Round]) -> dict[str, Any]:
    rate = statistics.median(one.images / one.wall for one in rounds)
    core = statistics.median(one.images / one.processor for one in rounds)
    return {"data": way.data, "view": way.view, "workers": way.workers, "bytes": size, "rate": rate, "core": core}


def runtime(device: str) -> str:
    """Processor, cores, threads, versions and load, in words."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
    gpu = f"{torch.cuda.get_device_name()}, " if device == "cuda" else ""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = f"torch {torch.__version__}, Pillow {Image.__version__}, load {os.getloadavg()[0]:.1f}"
    return (
        f"{gpu}{cpu}, {os.cpu_count()} cores ({mine} for this process), {torch.get_num_threads()} threads, {versions}"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the images and their packs; kept")
    parser.add_argument("--data", type=Path, help="a folder of your own images in the place of those made here")
    parser.add_argument("--images", type=int, default=512, help="how many are made")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=8, help="in a round, where nothing is decoded")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1], help="processes that decode")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round here")
    return parser.parse_args()


def main() -> None:
    o = arguments()
    logging.basicConfig(level="INFO", format="%(message)s")
    data = o.data or o.folder / "photographs"
    if not o.data:
        photographs(data, o.images)
    sources = packs(data, o.folder, o.size)
    check_equal(sources, o)
    print(f"{datetime.now(UTC):%Y-%m-%d}, {runtime(o.device)}\n`{shlex.join(['python', *sys.argv])}`\n")
    compared = list(ways(sources, o))
    rounds: list[list[Round]] = [[] for _ in compared]
    for _ in range(o.rounds):
        for way, each in zip(compared, rounds, strict=True):
            each.append(timed(way))
    print("| images | view | workers | KB an image | images/s | images/s per core, in processor time |")
    print("|---|---|---|---|---|---|")
    results = []
    for way, each in zip(compared, rounds, strict=True):
        found = row(way, sources.get(way.data, (None, 3 * o.size**2))[1], each)
        kb, rate, core = (f"{found[name] / scale:,.0f}" for name, scale in (("bytes", 1e3), ("rate", 1), ("core", 1)))
        print(f"| {way.data} | {way.view} | {way.workers or 'none'} | {kb} | {rate} | {core} |")
        results.append({**found, "rounds": [one._asdict() for one in each]})
    if o.json:
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(o).items()}
        report = {"machine": runtime(o.device), "settings": settings, "results": results}
        o.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
