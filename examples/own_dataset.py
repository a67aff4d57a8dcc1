"""A data set of your own: any object with these methods is packed once, and the pack is ``--data`` for every verb.

python examples/own_dataset.py packed
mapet pretrain packed --out runs/own
"""

import sys

import numpy as np
from PIL import Image

import mapet


class Gradients:
    """48 synthetic images in two classes; yours would read a database, an archive or a camera."""

    name = "gradients"
    classes = ("horizontal", "vertical")

    def __len__(self) -> int:
        return 48

    def image_id(self, i: int) -> str:
        """A unique name that never changes: tokens are found by it."""
        return f"gradient/{i:05d}"

    def label(self, i: int) -> int:
        """The index in ``classes``; -1 for an unlabelled image."""
        return i % 2

    def read(self, i: int) -> Image.Image:
        """The image in mode RGB; raise ``mapet.data.image.UnreadableImage`` with a reason if it cannot be read."""
        random = np.random.default_rng(i)
        ramp = np.linspace(0, 200, 32)[:, None] * np.ones(32)
        pixels = (ramp if self.label(i) else ramp.T)[..., None] + random.integers(0, 50, 3)
        return Image.fromarray(pixels.astype(np.uint8))


if __name__ == "__main__":
    mapet.pack(Gradients(), sys.argv[1], size=32)
