"""What a pre-training step is given: pixels, the tokens of the same view, an order and a key, all by sample."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mapet.data.augment import jitter, normalize, to_float
from mapet.data.bad import BadPictures, listed
from mapet.data.loader import Batch, Shuffled
from mapet.data.source import Source
from mapet.hashing import hashed
from mapet.method.order import STRATEGIES
from mapet.recipe import Recipe
from mapet.tokenizers.store import TokenStore
from mapet.view import View

KEY, LIMIT = 0x4B45, 0x4C49  # salts


def chosen(source: Source, limit: int | None, seed: int) -> Tensor:
    """(N,) int64 ascending: all places of the source, or ``limit`` of them drawn by the seed."""
    places = torch.arange(len(source))
    if limit is None or limit >= len(places):
        return places
    return hashed(seed, LIMIT, places).argsort(stable=True)[:limit].sort().values


class Feed:
    """The training stream of a recipe: ``Shuffled`` pictures as arguments of ``TokenPrediction.forward``."""

    def __init__(self, recipe: Recipe, shuffled: Shuffled, store: TokenStore, device: torch.device) -> None:
        self.recipe, self.shuffled, self.store, self.device = recipe, shuffled, store, device
        self.rows = np.full(len(shuffled.source), -1)
        self.rows[shuffled.places] = store.rows([shuffled.source.key(i) for i in shuffled.places.tolist()])

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.shuffled.steps

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one epoch."""
        return self.shuffled.steps_per_epoch

    def __call__(self, start: int) -> Iterator[dict[str, Tensor]]:
        """The batches from step ``start`` on, on the device."""
        return map(self.prepared, self.shuffled(start))

    def prepared(self, batch: Batch) -> dict[str, Tensor]:
        """One batch as ``images`` (B, 3, H, W) normalised, ``tokens`` (B, L), ``order`` (B, 1 + L) and ``key`` (B,)."""
        recipe, index = self.recipe, batch.index.to(self.device)
        images = to_float(batch.images, self.device)
        images = normalize(jitter(images, recipe.color_jitter, recipe.seed, batch.epoch, index))
        strategy = STRATEGIES[recipe.objective.order]
        return {
            "images": images,
            "tokens": self.tokens(batch.index).to(self.device),
            "order": strategy(recipe.grid, recipe.hidden, recipe.seed, batch.epoch, index),
            "key": hashed(recipe.seed, KEY, batch.epoch, index),
        }

    def tokens(self, index: Tensor) -> Tensor:
        """(B, L) int64 of the pictures at ``index``."""
        return torch.from_numpy(self.store.tokens[self.rows[index]].astype(np.int64))

    def chance(self) -> float:
        """The accuracy of always guessing the most frequent token."""
        rows = self.rows[self.shuffled.places][:10_000]
        counts = np.bincount(self.store.tokens[rows].ravel())
        return float(counts.max() / counts.sum())


def tokenized(source: Source, places: Tensor, store: TokenStore, bad: BadPictures, recipe: Recipe) -> Tensor:
    """The places whose pictures have tokens; the others must be known as bad ones, and are noted in ``bad``.

    Raises:
        MapetError: the store lacks pictures that it should have, or its view or grid is not the recipe's.
    """
    known = listed(Path(store.folder) / "bad-pictures.txt")
    have = [place for place in places.tolist() if source.key(place) not in known]
    for place in sorted(set(places.tolist()) - set(have)):
        bad.add(source.key(place), known[source.key(place)])
    side = recipe.model.image_size
    view = View((side, side), store.view.interpolation)
    store.check(source_name=source.name, keys=map(source.key, have), view=view, grid=recipe.grid)
    return torch.tensor(have)
