"""The pre-training stream: pixels, tokens of the same view, an order and a seed for each image."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from mapet.build.known_ids import under_known_ids
from mapet.config.recipe import Recipe, Runtime
from mapet.config.training import MAX_PIXELS
from mapet.data.augment import jitter, normalize, to_float
from mapet.data.crop import Crops, TransformPolicy
from mapet.data.dataset import ImageDataset, open_dataset
from mapet.data.decode import Batch
from mapet.data.device import to_device
from mapet.data.loader import Shuffled, Stream
from mapet.data.unreadable import UnreadableImages, listed
from mapet.engine.distributed import pick_workers
from mapet.method.order import STRATEGIES
from mapet.tokenizers.information import PositionGuess, position_guess
from mapet.tokenizers.store import TokenStore
from mapet.tokenizers.tokenizer import Tokenizer
from mapet.utils.errors import MapetError
from mapet.utils.rng import exact, random_bits
from mapet.utils.view import CenterCropResize

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SEED, LIMIT = 0x4B45, 0x4C49  # salts
ENCODED = 64  # images that a tokenizer encodes at a time, as in ``mapet tokenize``


class Images(NamedTuple):
    """Some images of a data set.

    Attributes:
        source: the data set.
        indices: (N,) int64 ascending, the images in it.
        unreadable: those of them that could not be read.
    """

    source: ImageDataset
    indices: Tensor
    unreadable: UnreadableImages


def open_images(
    data: str,
    max_images: int | None,
    seed: int,
    runtime: Runtime,
    listed_in: Path | None = None,
    max_pixels: int = MAX_PIXELS,
    draft: int | None = None,
) -> Images:
    """The training images of a data set, or ``max_images`` of them; unreadable ones are listed in a file.

    Raises:
        MapetError: no images.
    """
    source = open_dataset(data, max_pixels=max_pixels, draft=draft)
    indices = choose_indices(source, max_images, seed)
    return Images(source, indices, UnreadableImages(len(indices), runtime.max_bad_fraction, listed_in))


def choose_indices(source: ImageDataset, max_images: int | None, seed: int) -> Tensor:
    """(N,) int64 ascending: the indices of all images of the source, or of ``max_images`` drawn by the seed."""
    indices = torch.arange(len(source))
    if max_images is None or max_images >= len(indices):
        return indices
    return random_bits(seed, LIMIT, indices).argsort(stable=True)[:max_images].sort().values


def shuffled_images(
    images: Images,
    views: tuple[CenterCropResize, ...],
    crops: TransformPolicy | None,
    *,
    batch_size: int,
    epochs: float,
    seed: int,
    runtime: Runtime,
    fabric: "Fabric",
) -> Shuffled:
    """This process's share of the training images in random order, seen by one view or two.

    Raises:
        MapetError: a batch size that the processes cannot share, or fewer images than one batch.
    """
    return Shuffled(
        images.source,
        views[0],
        second=views[-1],
        crops=crops,
        batch_size=batch_size,
        epochs=epochs,
        seed=seed,
        bad=images.unreadable,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        workers=pick_workers(runtime.workers, fabric.device),
        memory=int(runtime.cache_gib * 2**30),
        indices=images.indices,
        device=fabric.device,
    )


class FirstSteps:
    """The first ``steps`` steps of a training stream."""

    def __init__(self, stream: Any, steps: int) -> None:
        self.stream, self.steps, self.steps_per_epoch = stream, steps, stream.steps_per_epoch

    def __call__(self, start: int) -> Iterator[dict[str, Tensor]]:
        """The batches from step ``start`` on."""
        return (batch for _, batch in zip(range(start, self.steps), self.stream(start), strict=False))

    def __getattr__(self, name: str) -> Any:
        """``filler``, if the stream has it."""
        if name != "filler":
            raise AttributeError(name)
        return self.stream.filler


def random_crops(recipe: Recipe) -> Crops | None:
    """The recipe's random crops and flips; None for the centre crop of each image."""
    return Crops(recipe.seed, recipe.scale, recipe.ratio, recipe.hflip) if recipe.varied else None


def student_view(recipe: Recipe) -> CenterCropResize:
    """The square that the recipe's encoder sees of an image."""
    return CenterCropResize((recipe.model.image_size, recipe.model.image_size))


class Tokens(Protocol):
    """The source of a batch's tokens.

    Attributes:
        vocabulary: number of different tokens V.
        tokenizer: hash of the tokenizer.
    """

    vocabulary: int
    tokenizer: str

    def __call__(self, batch: Batch) -> Tensor:
        """(B, L) int64, on any device."""

    def some(self, shuffled: Shuffled) -> Tensor:
        """(N, L) int64: the tokens of a fixed sample of the stream's images."""


class Stored:
    """Tokens read from a store."""

    def __init__(self, store: TokenStore, source: ImageDataset, indices: Tensor) -> None:
        self.store, self.vocabulary, self.tokenizer = store, store.vocabulary, store.tokenizer
        self.rows = np.full(len(source), -1)
        self.rows[np.asarray(indices)] = store.rows([source.image_id(i) for i in indices.tolist()])

    def __call__(self, batch: Batch) -> Tensor:
        """The tokens of the images at ``batch.index``, whatever the batch shows of them."""
        return self._at(batch.index)

    def some(self, shuffled: Shuffled) -> Tensor:
        """The tokens of up to 10,000 images, evenly spaced."""
        return self._at(shuffled.indices[:: -(-len(shuffled.indices) // 10_000)])

    def _at(self, indices: Tensor) -> Tensor:
        return torch.from_numpy(self.store.read(self.rows[np.asarray(indices)]).astype(np.int64))


class Online:
    """Tokens computed from a batch's pixels, in float32 whatever the training's precision.

    Batch composition affects a token only when rounding breaks a tie between two codes.
    """

    def __init__(self, tokenizer: Tokenizer, device: torch.device) -> None:
        self.vocabulary, self.tokenizer, self.device = tokenizer.vocabulary, tokenizer.hash, device
        self.network = tokenizer.to(device)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """The tokens of the batch's last view, ``ENCODED`` images at a time."""
        return torch.cat(
            [self.network.encode(to_float(part, self.device)) for part in torch.split(batch.views[-1], ENCODED)]
        )

    def some(self, shuffled: Shuffled) -> Tensor:
        """The tokens of the first images of the first epoch."""
        parts = torch.split(shuffled.sequence(0)[:256], ENCODED)
        return torch.cat([self(shuffled.at(0, part)) for part in parts])


class NoTokens:
    """No tokens, for an objective that reads none."""

    vocabulary, tokenizer = 0, "none"

    def __call__(self, batch: Batch) -> Tensor:
        """(B, 0)."""
        return batch.index.new_empty(len(batch.index), 0)

    def some(self, shuffled: Shuffled) -> Tensor:
        """(0, 0)."""
        return shuffled.indices.new_empty(0, 0)


class PretrainBatches(Stream):
    """The training stream of a recipe: ``Shuffled`` images as arguments of an objective's ``forward``.

    An online tokenizer is not part of the objective: it is neither trained nor saved.
    """

    def __init__(self, recipe: Recipe, shuffled: Shuffled, tokens: Tokens, device: torch.device) -> None:
        self.recipe, self.shuffled, self.tokens, self.device = recipe, shuffled, tokens, device

    def __call__(self, start: int) -> Iterator[dict[str, Tensor]]:
        """The batches from step ``start`` on, on the device."""
        return map(self.prepared, self.shuffled(start))

    def prepared(self, batch: Batch) -> dict[str, Tensor]:
        """One batch as ``images`` (B, 3, H, W) normalised, ``tokens`` (B, L), ``order`` (B, 1 + L) and ``seed`` (B,).

        Only the student's colours are jittered, never those that are tokenized. Nothing here waits for a GPU: the host
        prepares a batch while the previous step still runs, and draws all random numbers.
        """
        recipe, key = self.recipe, (self.recipe.seed, batch.epoch, batch.index)
        images = to_float(batch.images, self.device)
        images = normalize(jitter(images, recipe.color_jitter, *key))
        order = STRATEGIES[recipe.objective.order](recipe.grid, recipe.num_masked, *key)
        return {
            "images": images,
            "tokens": to_device(self.tokens(batch), self.device),
            "order": to_device(order, self.device),
            "seed": to_device(random_bits(recipe.seed, SEED, batch.epoch, batch.index), exact(self.device)),
        }

    def filler(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A black image with tokens 0 in raster sequence, for a process without images."""
        filler = {name: tensor.new_zeros(1, *tensor.shape[1:]) for name, tensor in batch.items()}
        return {**filler, "order": torch.arange(batch["order"].shape[1], device=self.device)[None]}

    def guess(self) -> PositionGuess | None:
        """How well tokens are guessed without looking at the image, over a sample; None without tokens."""
        tokens = self.tokens.some(self.shuffled)
        return position_guess(tokens, self.recipe.seed) if tokens.numel() and len(tokens) > 1 else None


def with_tokens(images: Images, store: TokenStore, recipe: Recipe) -> Images:
    """The images that have tokens. The others must be listed as unreadable by the store, and are added to the list.

    An image that is listed as unreadable and has tokens counts as readable: it was repaired since.

    Raises:
        MapetError: the store lacks other images, or its view, draft or grid is not the recipe's.
    """
    source, indices, unreadable = under_known_ids(images.source, store), images.indices, images.unreadable
    known = listed(Path(store.folder) / "unreadable-images.txt")
    have = [i for i in indices.tolist() if (image_id := source.image_id(i)) not in known or image_id in store]
    for i in sorted(set(indices.tolist()) - set(have)):
        unreadable.add(source.image_id(i), known[source.image_id(i)])
    if (made := store.extra.get("draft")) != recipe.draft:
        there, here = (f"with --draft {draft}" if draft else "without --draft" for draft in (made, recipe.draft))
        raise MapetError(
            f"{store.folder} was made {there}, and the student would read images {here}: give both the same."
        )
    side = recipe.model.image_size
    view = CenterCropResize((side, side), store.view.interpolation)
    store.check(source_name=source.name, image_ids=map(source.image_id, have), view=view, grid=recipe.grid)
    return Images(source, torch.tensor(have), unreadable)


def require_fitting(tokenizer: Tokenizer, folder: Path, recipe: Recipe) -> None:
    """Refuse a tokenizer whose view or grid is not that of the recipe's student.

    Raises:
        MapetError: both sides are named.
    """
    side = recipe.model.image_size
    tokenizer.view.at((side, side))
    if tokenizer.grid != recipe.grid:
        raise MapetError(
            f"The tokenizer in {folder} has a grid of {tokenizer.grid}, and the student one of {recipe.grid}: "
            "change --image-size or --patch-size, or give another tokenizer."
        )
