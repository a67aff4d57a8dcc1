"""What a pre-training step is given: pixels, the tokens of the same view, an order and a seed, all by sample."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mapet.config.recipe import Recipe
from mapet.data.augment import jitter, normalize, to_float
from mapet.data.crop import Crops
from mapet.data.dataset import ImageDataset
from mapet.data.decode import Batch
from mapet.data.device import to_device
from mapet.data.loader import Shuffled, Stream
from mapet.data.unreadable import UnreadableImages, listed
from mapet.method.order import STRATEGIES
from mapet.tokenizers.store import TokenStore
from mapet.tokenizers.tokenizer import Tokenizer
from mapet.utils.errors import MapetError
from mapet.utils.rng import exact, random_bits
from mapet.utils.view import CenterCropResize

KEY, LIMIT = 0x4B45, 0x4C49  # salts
AT_ONCE = 64  # images that a tokenizer sees at a time, as in ``mapet tokenize``


def chosen(source: ImageDataset, max_images: int | None, seed: int) -> Tensor:
    """(N,) int64 ascending: all places of the source, or ``limit`` of them drawn by the seed."""
    indices = torch.arange(len(source))
    if max_images is None or max_images >= len(indices):
        return indices
    return random_bits(seed, LIMIT, indices).argsort(stable=True)[:max_images].sort().values


def crops(recipe: Recipe) -> Crops | None:
    """The recipe's random crops and mirrorings; None: each image's centre."""
    return Crops(recipe.seed, recipe.scale, recipe.ratio, recipe.hflip) if recipe.varied else None


def student_view(recipe: Recipe) -> CenterCropResize:
    """The square in which the recipe's encoder sees an image."""
    return CenterCropResize((recipe.model.image_size, recipe.model.image_size))


class Tokens(Protocol):
    """Where the tokens of a batch come from.

    Attributes:
        vocabulary: tokens are below it.
        tokenizer: hash of the tokenizer.
    """

    vocabulary: int
    tokenizer: str

    def __call__(self, batch: Batch) -> Tensor:
        """(B, L) int64, on any device."""

    def some(self, shuffled: Shuffled) -> Tensor:
        """(N, L) int64: the tokens of some images of the stream, always the same."""


class Stored:
    """Tokens read from a store."""

    def __init__(self, store: TokenStore, source: ImageDataset, indices: Tensor) -> None:
        self.store, self.vocabulary, self.tokenizer = store, store.vocabulary, store.tokenizer
        self.rows = np.full(len(source), -1)
        self.rows[indices] = store.rows([source.image_id(i) for i in indices.tolist()])

    def __call__(self, batch: Batch) -> Tensor:
        """The tokens of the images at ``batch.index``, whatever the batch shows of them."""
        return self._at(batch.index)

    def some(self, shuffled: Shuffled) -> Tensor:
        """Those of the first images."""
        return self._at(shuffled.indices[:10_000])

    def _at(self, indices: Tensor) -> Tensor:
        return torch.from_numpy(self.store.tokens[self.rows[indices]].astype(np.int64))


class Online:
    """Tokens made from what a batch shows, in float32 whatever the training's precision.

    They hang on the images' division into batches only where rounding decides between two codes.
    """

    def __init__(self, tokenizer: Tokenizer, device: torch.device) -> None:
        self.vocabulary, self.tokenizer, self.device = tokenizer.vocabulary, tokenizer.hash, device
        self.network = tokenizer.to(device)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """The tokens of the batch's last view, ``AT_ONCE`` images at a time."""
        return torch.cat(
            [self.network.encode(to_float(part, self.device)) for part in torch.split(batch.views[-1], AT_ONCE)]
        )

    def some(self, shuffled: Shuffled) -> Tensor:
        """Those of the first images of the first epoch."""
        parts = torch.split(shuffled.sequence(0)[:256], AT_ONCE)
        return torch.cat([self(shuffled.at(0, part)) for part in parts])


class NoTokens:
    """None for any image, where the objective reads none."""

    vocabulary, tokenizer = 0, "none"

    def __call__(self, batch: Batch) -> Tensor:
        """(B, 0)."""
        return batch.index.new_empty(len(batch.index), 0)

    def some(self, shuffled: Shuffled) -> Tensor:
        """(0, 0)."""
        return shuffled.indices.new_empty(0, 0)


class PretrainBatches(Stream):
    """The training stream of a recipe: ``Shuffled`` images as arguments of an objective's ``forward``.

    A tokenizer among its ``tokens`` is no part of the objective: it is neither trained nor saved.
    """

    def __init__(self, recipe: Recipe, shuffled: Shuffled, tokens: Tokens, device: torch.device) -> None:
        self.recipe, self.shuffled, self.tokens, self.device = recipe, shuffled, tokens, device

    def __call__(self, start: int) -> Iterator[dict[str, Tensor]]:
        """The batches from step ``start`` on, on the device."""
        return map(self.prepared, self.shuffled(start))

    def prepared(self, batch: Batch) -> dict[str, Tensor]:
        """One batch as ``images`` (B, 3, H, W) normalised, ``tokens`` (B, L), ``order`` (B, 1 + L) and ``seed`` (B,).

        Colours are jittered in the student's images alone: the tokens are of the image as it is. Nothing here waits
        for a GPU, so the host prepares a batch while the step before it still runs; all chance is drawn by the host.
        """
        recipe, chance = self.recipe, (self.recipe.seed, batch.epoch, batch.index)
        images = to_float(batch.images, self.device)
        images = normalize(jitter(images, recipe.color_jitter, *chance))
        order = STRATEGIES[recipe.objective.order](recipe.grid, recipe.num_masked, *chance)
        return {
            "images": images,
            "tokens": to_device(self.tokens(batch), self.device),
            "order": to_device(order, self.device),
            "seed": to_device(random_bits(recipe.seed, KEY, batch.epoch, batch.index), exact(self.device)),
        }

    def chance(self) -> float | None:
        """The accuracy of always guessing the most frequent token, among those of some images; None without any."""
        counts = self.tokens.some(self.shuffled).flatten().bincount()
        return float(counts.max() / counts.sum()) if len(counts) else None


def tokenized(
    source: ImageDataset, indices: Tensor, store: TokenStore, bad: UnreadableImages, recipe: Recipe
) -> Tensor:
    """The places whose images have tokens; the others must be known as bad ones, and are noted in ``bad``.

    An image that is listed as bad and has tokens all the same was mended since, and is a good one.

    Raises:
        MapetError: the store lacks images that it should have, or its view or grid is not the recipe's.
    """
    known = listed(Path(store.folder) / "unreadable-images.txt")
    have = [place for place in indices.tolist() if (key := source.image_id(place)) not in known or key in store]
    for place in sorted(set(indices.tolist()) - set(have)):
        bad.add(source.image_id(place), known[source.image_id(place)])
    side = recipe.model.image_size
    view = CenterCropResize((side, side), store.view.interpolation)
    store.check(source_name=source.name, image_ids=map(source.image_id, have), view=view, grid=recipe.grid)
    return torch.tensor(have)


def require_fitting(tokenizer: Tokenizer, folder: Path, recipe: Recipe) -> None:
    """Refuse a tokenizer that sees another part of an image than the recipe's student, or another grid.

    Raises:
        MapetError: both sides are named.
    """
    side = recipe.model.image_size
    tokenizer.view.at((side, side))
    if tokenizer.grid != recipe.grid:
        raise MapetError(
            f"The tokenizer in {folder} has a grid of {tokenizer.grid}, and the student one of {recipe.grid}: "
            "choose --image-size and --patch-size by it, or give another."
        )
