"""A tokenizer of your own: write one integer per patch into a token store, which is ``--tokens`` for every verb.

python examples/own_tokenizer.py images tokens
mapet pretrain images --tokens tokens --image-size 32 --patch-size 8 --out runs/own
"""

import sys
from pathlib import Path

import numpy as np
import torch

import mapet

LEVELS = 4  # per color


def encode(pixels: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """(3, H, W) in [0, 1] → (L,) int64: the mean color of each patch, with ``LEVELS`` levels per channel."""
    color = torch.nn.functional.adaptive_avg_pool2d(pixels, grid).flatten(1)
    level = (color * LEVELS).long().clamp(max=LEVELS - 1)
    return level[0] * LEVELS**2 + level[1] * LEVELS + level[2]


def main(data: str, out: str) -> None:
    """Tokenize all images of a folder at 32 × 32 pixels, with patches of 8 × 8."""
    view, grid = mapet.CenterCropResize((32, 32)), (4, 4)
    source = mapet.open_dataset(data)
    store = mapet.TokenStore.create(
        Path(out), view=view, grid=grid, vocabulary=LEVELS**3, tokenizer="mean color 1", extra={"data": source.name}
    )
    for i in range(len(source)):
        pixels = torch.from_numpy(np.array(view(source.read(i)))).permute(2, 0, 1) / 255
        store.append([source.image_id(i)], encode(pixels, grid)[None])


if __name__ == "__main__":
    main(*sys.argv[1:3])
