"""Tokenizers side by side on CIFAR-10: what each costs to make, and how healthy and telling its tokens are.

The teacher looks at every image once, and all codebooks share its answers; VQ-KD is trained by its own command in a
process of its own. Perplexity and the rest are over the tokens of all images, as in ``mapet tokenizer inspect``.

    python benchmarks/codebooks.py --out results/tokenizers
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mapet.api import tokenizer_report as findings
from mapet.api.images import ImagePass
from mapet.api.inspect_tokenizer import Options, Seen, draw, look
from mapet.config.recipe import Runtime
from mapet.data.dataset import ImageDataset, open_dataset
from mapet.data.unreadable import UnreadableImages
from mapet.tokenizers.codebook import Codebook
from mapet.tokenizers.codebook_fit import KMeansSettings
from mapet.tokenizers.health import Health
from mapet.tokenizers.teacher import Features, Teacher, open_teacher
from mapet.tokenizers.tokenizer import Tokenizer, load_tokenizer

GRID, PATCH = (8, 8), 4
VQKD = ["--embed-dim", "128", "--depth", "4", "--num-heads", "4", "--decoder-depth", "1", "--decay", "0.9"]
RATES = ["--batch-size", "128", "--lr", "1e-3", "--warmup-epochs", "0.3", "--scale", "None", "--hflip", "0"]
COLUMNS = {
    "tokenizer": "{name}",
    "codes": "{vocabulary:,}",
    "wall, s": "{seconds:,.0f}",
    "processor, s": "{processor:,.0f}",
    "memory, GiB": "{peak:.2f}",
    "perplexity": "{perplexity:,.0f}",
    "dead codes": "{dead:,.0f}",
    "distortion": "{distortion}",
    "a token tells of the label": "{bits:.3f} bits",
    "label from all tokens": "{bag}",
}


class Remembering(nn.Module):
    """A teacher that is asked once for each image."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher, self.known = teacher, dict[bytes, Tensor]()
        for name in ("name", "source", "stage", "grid", "width", "view", "origin", "describe"):
            setattr(self, name, getattr(teacher, name))

    def forward(self, images: Tensor) -> Tensor:
        """As the teacher's."""
        keys = [blake2b(image.numpy().data, digest_size=16).digest() for image in images]
        new = [place for place, key in enumerate(keys) if key not in self.known]
        if new:
            self.known |= zip((keys[place] for place in new), self.teacher(images[new]), strict=True)
        return torch.stack([self.known[key] for key in keys])


class Spent:
    """Seconds on the wall and of all threads, and the growth of this process's memory at its peak, in GiB."""

    def __init__(self) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # so that what was freed before does not hide what is taken now
        Path("/proc/self/clear_refs").write_text("5")
        self.before, self.wall, self.processor = resident("VmRSS"), time.monotonic(), time.process_time()

    def so_far(self) -> dict[str, float]:
        """Since the creation."""
        seconds = {"seconds": time.monotonic() - self.wall, "processor": time.process_time() - self.processor}
        return {**seconds, "peak": (resident("VmHWM") - self.before) / 2**30}


def resident(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def fitted(teacher: Features, image_pass: ImagePass, codes: int, metric: str) -> tuple[Codebook, dict[str, float]]:
    """A codebook, and what k-means took once the features were there."""
    settings, spent, told = KMeansSettings(codes=codes, metric=metric), Spent(), dict[str, float]()

    def progress(what: str, done: int, total: int) -> None:
        if what == "features" and done == total:
            told.update(spent.so_far())

    def decoded(indices: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        return image_pass.decoded(teacher.view, indices)

    book = Codebook.fit(teacher, decoded, image_pass.indices, settings, progress=progress)
    whole = spent.so_far()
    return book, {**whole, **{name: whole[name] - told[name] for name in ("seconds", "processor")}}


def trained(codes: int, epochs: int, max_images: int, folder: Path) -> tuple[Tokenizer, dict[str, float]]:
    """A VQ-KD tokenizer, and what its process took; one that is there already is not trained again."""
    cost = folder.with_suffix(".json")
    if not cost.is_file():
        sizes = ["--image-size", "32", "--patch-size", str(PATCH), "--vocab-size", str(codes), "--out", str(folder)]
        run = ["tokenizer", "train-vqkd", "cifar10", *sizes, *VQKD, *RATES, "--epochs", str(epochs)]
        began = time.monotonic()
        process = os.spawnv(
            os.P_NOWAIT, sys.executable, [sys.executable, "-m", "mapet", *run, "--max-images", str(max_images)]
        )
        _, status, usage = os.wait4(process, 0)
        if status:
            raise SystemExit(f"mapet {' '.join(run)} ended with {os.waitstatus_to_exitcode(status)}")
        spent = {"seconds": time.monotonic() - began, "processor": usage.ru_utime + usage.ru_stime}
        cost.write_text(json.dumps({**spent, "peak": usage.ru_maxrss / 2**20}) + "\n")
    return load_tokenizer(folder), json.loads(cost.read_text())


def row(name: str, tokenizer: Tokenizer, spent: dict[str, float], source: ImageDataset, seen: Seen) -> dict[str, Any]:
    """A line of the table."""
    labels = torch.tensor([source.label(place) for place in seen.indices.tolist()])
    health = Health.of(seen.tokens, tokenizer.vocabulary)
    told = findings.labels(seen.tokens, labels, tokenizer.vocabulary, 0)
    distortion = seen.distortion.result()[1] if seen.distortion else None
    bag = told["bag"]
    return {
        "name": name,
        **spent,
        "vocabulary": tokenizer.vocabulary,
        "perplexity": health.perplexity,
        "dead": health.dead,
        "distortion": "–" if distortion is None else f"{distortion:.1%}",
        "bits": told["token"]["bits"],
        "bag": f"{bag['value']:.1%} ({bag['low']:.1%} – {bag['high']:.1%})",
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
    lines += [" | ".join(form.format(**row) for form in COLUMNS.values()) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for tokenizers, JSON and table")
    parser.add_argument("--codes", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--max-images", type=int, default=50_000, help="image_pass")
    parser.add_argument("--epochs", type=int, default=2, help="of VQ-KD")
    parser.add_argument("--vqkd-limit", type=int, default=50_000, help="images that VQ-KD is trained on")
    o = parser.parse_args()
    o.out.mkdir(parents=True, exist_ok=True)
    source, indices = open_dataset("cifar10"), torch.arange(o.max_images)
    image_pass = ImagePass(source, indices, Runtime(), UnreadableImages(o.max_images))
    teacher, spent = Remembering(Teacher("efficientnet_lite0", GRID)), Spent()
    for images, _ in image_pass.decoded(teacher.view, indices):
        teacher(images.float() / 255)
    notes = [f"Features of {o.max_images:,} images: {spent.so_far()['seconds']:,.0f} s, once for the first codebooks."]
    rows: list[dict[str, Any]] = []

    def add(name: str, made: tuple[Tokenizer, dict[str, float]]) -> None:
        tokenizer, cost = made
        seen = look(tokenizer, source, indices, Options())
        rows.append(row(name, tokenizer, cost, source, seen))
        out = o.out / f"{name.split(' on ')[0].replace(', ', '-').replace(' ', '-').lower()}-{tokenizer.vocabulary}"
        out.mkdir(exist_ok=True)
        draw(tokenizer, source, seen, [], out, Options())
        (o.out / "tokenizers.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
        (o.out / "table.md").write_text("\n".join([*notes, "", table(rows), ""]))

    notes.append(
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.runtime()}, {os.cpu_count()} cores, torch {torch.__version__}"
    )
    for codes in o.codes:
        for metric in ("euclidean", "cosine"):
            add(f"k-means, {metric}", fitted(teacher, image_pass, codes, metric))
        pixels = open_teacher("pixels", GRID, patch_size=PATCH)
        add("k-means, pixels", fitted(pixels, image_pass, codes, "euclidean"))
    for codes in o.codes:
        name = f"VQ-KD, {o.epochs} epochs on {o.vqkd_limit:,}"
        add(name, trained(codes, o.epochs, o.vqkd_limit, o.out / f"trained-{codes}"))
    print((o.out / "table.md").read_text())


if __name__ == "__main__":
    main()
