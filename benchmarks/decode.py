"""How long one core reads and resizes the images of a folder, at several --draft, and how many cores a pace needs.

    python benchmarks/decode.py IMAGES --draft 448 --pace 1977

Without IMAGES, twelve JPEG files of 4000 x 3000 smooth and noisy pixels are made. Each image is read whole and at each
draft in turn, three rounds; medians of the rounds. If torchcodec (0.16 or later) is installed, its decoder is measured
too.
"""

import argparse
import importlib.util
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from mapet.data.folder import open_all
from mapet.data.image import read_image
from mapet.utils.view import CenterCropResize

ROUNDS = 3


def photographs(folder: Path) -> None:
    """Twelve files that are as large as a camera's."""
    chance = np.random.default_rng(0)
    for i in range(12):
        image = Image.fromarray(chance.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((4000, 3000))
        noisy = np.clip(np.asarray(image) + chance.normal(0, 8, (3000, 4000, 1)), 0, 255)
        Image.fromarray(noisy.astype(np.uint8)).save(folder / f"{i:02}.jpg", quality=92)


def read(path: Path, way: int | str | None) -> Image.Image:
    """Whole, at a draft, or whole by torchcodec."""
    if way != "torchcodec":
        return read_image(path, draft=way)
    from torchcodec.decoders import decode_jpeg

    return Image.fromarray(decode_jpeg(path).permute(1, 2, 0).numpy())


def measured(paths: list[Path], view: CenterCropResize, way: int | str | None) -> tuple[float, list[np.ndarray]]:
    """Seconds per image, and what is seen."""
    begin = time.perf_counter()
    seen = [np.asarray(view(read(path, way))).astype(np.int16) for path in paths]
    return (time.perf_counter() - begin) / len(paths), seen


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="?", type=Path)
    parser.add_argument("--draft", type=int, nargs="+", default=[448])
    parser.add_argument("--size", type=int, default=224, help="side of the view in pixels")
    parser.add_argument("--count", type=int, default=64, help="most images")
    parser.add_argument("--pace", type=float, default=1000, help="images per second that are to be fed")
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        if o.images is None:
            photographs(Path(made))
        source = open_all(o.images or Path(made))
        paths = [source.file(i) for i in range(0, len(source), max(1, len(source) // o.count))][: o.count]
        view, ways = CenterCropResize((o.size, o.size)), [None, *o.draft]
        ways += ["torchcodec"] * (importlib.util.find_spec("torchcodec") is not None)
        times, seen = {way: [] for way in ways}, {}
        for _ in range(ROUNDS):
            for way in ways:
                seconds, seen[way] = measured(paths, view, way)
                times[way].append(seconds)
    print(f"{len(paths)} images, {o.size} pixels; difference: mean over pixels, of 255")
    for way in ways:
        seconds = median(times[way])
        off = np.mean([np.abs(a - b).mean() for a, b in zip(seen[way], seen[None], strict=True)])
        print(
            f"draft {way or '-'!s:>10}  {1000 * seconds:7.1f} ms  difference {off:.2f}  "
            f"{seconds * o.pace:6.1f} cores for {o.pace:g} images/s"
        )


if __name__ == "__main__":
    main()
