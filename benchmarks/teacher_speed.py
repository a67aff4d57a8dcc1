"""Processor time of a teacher's features on CIFAR-10, in alternating rounds, and the tokens that each way changes.

    python benchmarks/teacher_speed.py --tokenizer quickstart/tokens/tokenizer --images 192 --rounds 4

The tokenizer is that of a quickstart, or any codebook.
"""

import argparse
import time
from collections.abc import Callable
from copy import deepcopy
from statistics import median

import torch
from torch import Tensor

import mapet.tokenizers.teacher as teachers
from mapet.api.images import ImagePass
from mapet.config.recipe import Runtime
from mapet.data.dataset import open_dataset
from mapet.data.unreadable import UnreadableImages
from mapet.tokenizers.tokenizer import load_tokenizer


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=4)
    o = parser.parse_args()
    torch.set_num_threads(1)
    new = load_tokenizer(o.tokenizer)
    teachers.fold_batch_norms = lambda *given: None  # type: ignore[assignment]
    old = load_tokenizer(o.tokenizer)
    folded, plain = new.teacher, old.teacher  # type: ignore[attr-defined]
    half = deepcopy(folded)
    half.tower.bfloat16()
    half.mean, half.std = half.mean.bfloat16(), half.std.bfloat16()
    source, indices = open_dataset("cifar10"), torch.arange(o.images)
    some = ImagePass(source, indices, Runtime(), UnreadableImages(o.images, 1.0), batch_size=64)
    images = torch.cat([pixels for pixels, _ in some.decode(new.view, indices)]).float() / 255

    def autocast(part: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return plain._map(part).float()

    ways: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
        "plain, 64 at a time": (plain._map, 64),
        "plain, 16": (plain._map, 16),
        "folded, 64": (folded._map, 64),
        "folded, 16": (folded._map, 16),
        "folded, 4": (folded._map, 4),
        "folded, bfloat16, 16": (lambda part: half._map(part.bfloat16()).float(), 16),
        "plain, autocast to bfloat16, 16": (autocast, 16),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    tokens = {}
    for _ in range(o.rounds):
        for name, (features, size) in ways.items():
            began = time.process_time()
            found = torch.cat([features(part) for part in images.split(size)])
            seconds[name].append(1000 * (time.process_time() - began) / o.images)
            tokens[name] = new.assigned(found.flatten(2).transpose(1, 2))[0]  # type: ignore[attr-defined]
    first = next(iter(tokens.values()))
    for name, own in seconds.items():
        changed = float((tokens[name] != first).double().mean())
        print(f"{name:32} {median(own):6.2f} ms (least {min(own):.2f}), {changed:.3%} of the tokens changed")


if __name__ == "__main__":
    main()
