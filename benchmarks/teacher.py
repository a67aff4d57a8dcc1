"""Seconds and memory for the features of one image, for any teacher, with random weights; then a codebook.

A codebook of 64 codes is fitted on two images of unusual sizes, in the teacher's view, and encodes them.

python benchmarks/teacher.py --teacher resnet50x64_clip.openai --grid 14 --images 4
"""

import argparse
import json
import platform
import resource
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mapet.tokenizers.codebook import Codebook
from mapet.tokenizers.codebook_fit import KMeansSettings
from mapet.tokenizers.teacher import Teacher
from mapet.utils.rng import uniform
from mapet.utils.view import CenterCropResize

SIZES, CODES = ((31, 200), (500, 400)), 64  # (width, height) of the images


def measure(teacher: Teacher, images: int, batch: int) -> dict[str, float | str]:
    """Seconds per image (median of the batches except the first) and the peak memory of the process."""
    loaded, (rows, columns) = peak(), teacher.grid
    shape = torch.Size((batch, 3, *teacher.view.size))
    noise = uniform(0, torch.arange(shape.numel())).view(shape).float()
    seconds = []
    for _ in range(1 + images // batch):
        began = time.perf_counter()
        features = teacher(noise)
        seconds.append((time.perf_counter() - began) / batch)
    assert features.shape == (batch, rows * columns, teacher.width)
    return {
        "teacher": teacher.name,
        "pixels": teacher.view.size[0],
        "features": f"{rows * columns} × {teacher.width}",
        "parameters": sum(p.numel() for p in teacher.parameters()),
        "seconds an image": statistics.median(seconds[1:]),
        "weights, GiB": loaded,
        "peak, GiB": peak(),
    }


def cluster(teacher: Teacher) -> dict[str, float | int]:
    """Processor seconds to fit a codebook on the odd images and to encode one, and the peak memory after that."""
    images = torch.stack([odd(size, teacher.view) for size in SIZES])
    began = time.process_time()
    indices = torch.arange(len(images))
    book = Codebook.fit(teacher, lambda some: [(images[some], some)], indices, KMeansSettings(codes=CODES))
    fitted = time.process_time()
    tokens = book.encode(images[:1].float() / 255)
    return {
        "processor s, fit": fitted - began,
        "processor s, encode": time.process_time() - fitted,
        "tokens of one": tokens.numel(),
        "codes in them": len(tokens.unique()),
        "peak then, GiB": peak(),
    }


def odd(size: tuple[int, int], view: CenterCropResize) -> Tensor:
    """An image of noise (3, H, W) uint8, in the view."""
    width, height = size
    noise = (uniform(1, torch.arange(width * height * 3)) * 256).byte().view(height, width, 3)
    return torch.from_numpy(np.array(view(Image.fromarray(noise.numpy())))).permute(2, 0, 1)


def peak() -> float:
    """The process's largest resident memory so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="resnet50x64_clip.openai")
    parser.add_argument("--grid", type=int, default=14, help="patches a side")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the result there too")
    o = parser.parse_args()
    teacher = Teacher(o.teacher, (o.grid, o.grid), pretrained=False)
    found = measure(teacher, o.images, o.batch) | cluster(teacher)
    found |= {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": platform.runtime(),
        "threads": torch.get_num_threads(),
    }
    for key, value in found.items():
        print(f"{key:<18} {value:,.3f}" if isinstance(value, float) else f"{key:<18} {value}")
    if o.json:
        o.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
