"""From files to finished steps: ours through its own stream, the dense reference with masks made in its loader."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import disk_usage
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mapet.api.benchmark.case import OURS, Case
from mapet.api.benchmark.dense import dense_masks, predicted_positions
from mapet.api.benchmark.step import Runner, over_stream
from mapet.build.batches import PretrainBatches, chosen, crops, student_view
from mapet.build.pretrain import build_encoder
from mapet.data.dataset import open_dataset
from mapet.data.decode import Batch
from mapet.data.loader import Shuffled
from mapet.data.unreadable import UnreadableImages
from mapet.engine.distributed import pick_workers
from mapet.method.order import STRATEGIES
from mapet.utils.rng import randint

if TYPE_CHECKING:
    from lightning_fabric import Fabric

AHEAD = 2  # batches that each worker decodes ahead
SHARED = Path("/dev/shm")  # through which workers hand batches over, where there is one
TOKENS = 0x42


@dataclass(frozen=True)
class Loading:
    """Where images come from, and how.

    Attributes:
        data: folder of images, or cifar10.
        workers: processes that decode, as ``Runtime.workers``.
        cache_gib: GiB into which decoded images must fit to be held, as ``Runtime.cache_gib``.
    """

    data: str
    workers: int | None = None
    cache_gib: float = 2.0


class Drawn:
    """Tokens by chance, in place of a store's: to look a token up costs no more than to draw it."""

    tokenizer = "drawn"

    def __init__(self, vocabulary: int, length: int) -> None:
        self.vocabulary, self.length = vocabulary, length

    def __call__(self, batch: Batch) -> Tensor:
        """(B, L) int64, always the same for an image."""
        return randint(self.vocabulary, TOKENS, batch.index.cpu()[:, None], torch.arange(self.length))

    def some(self, shuffled: Shuffled) -> Tensor:
        """(1, L) of the first image."""
        return self(Batch(torch.empty(0), shuffled.indices[:1], 0))


def pretrain_batches(case: Case, loading: Loading, steps: int, device: torch.device) -> PretrainBatches:
    """``steps`` steps of the recipe and more over the images, as ``mapet pretrain`` reads them.

    Raises:
        MapetError: no images, or fewer than a batch.
    """
    recipe, source = case.recipe, open_dataset(loading.data)
    indices = chosen(source, recipe.max_images, recipe.seed)
    shuffled = Shuffled(
        source,
        student_view(recipe),
        crops=crops(recipe),
        batch_size=case.batch,
        epochs=1 + steps / max(1, len(indices) // case.batch),
        seed=recipe.seed,
        bad=UnreadableImages(len(indices)),
        workers=pick_workers(loading.workers, device),
        memory=int(loading.cache_gib * 2**30),
        indices=indices,
        device=device,
    )
    return PretrainBatches(recipe, shuffled, Drawn(case.vocabulary, recipe.grid[0] * recipe.grid[1]), device)


def end_to_end(runner: Runner, case: Case, loading: Loading, steps: int, fabric: "Fabric") -> float:
    """Wall seconds a step with loading; batches that are ready at the start do not count.

    Raises:
        MapetError: as ``pretrain_batches``.
    """
    workers = workers_for(runner.name, case, loading, fabric.device)
    skip = 1 + AHEAD * workers
    stream = pretrain_batches(case, replace(loading, workers=workers), skip + steps, fabric.device)
    return over_stream(runner, LOADERS[runner.name](stream, case), skip, steps)


def workers_for(implementation: str, case: Case, loading: Loading, device: torch.device) -> int:
    """As many as are asked for; of those that hand masks over only so many as the shared memory has room for."""
    workers = pick_workers(loading.workers, device)
    if implementation == OURS or not SHARED.is_dir():
        return workers
    return fitting(workers, handed_over(case), disk_usage(SHARED).free)


def fitting(workers: int, batch: int, free: int) -> int:
    """So many of ``workers`` that what they decode ahead, and the batch in hand, fit into ``free`` bytes; one does."""
    return min(workers, max(1, (free // batch - 1) // AHEAD))


def handed_over(case: Case) -> int:
    """Bytes of one batch with masks."""
    side, grid = case.recipe.model.image_size, case.recipe.grid
    order = torch.empty(case.batch, 1 + grid[0] * grid[1], dtype=torch.int64, device="meta")
    masks = dense_masks(order, case.recipe.context, _heads(case))
    return case.batch * 3 * side**2 + sum(mask.nbytes for mask in masks)


def _heads(case: Case) -> int:
    with torch.device("meta"):
        return build_encoder(case.recipe).num_heads


def with_masks(stream: PretrainBatches, case: Case) -> Iterator[dict[str, Tensor]]:
    """The batches of ``stream`` as the dense reference takes them; each image's masks are made beside its pixels.

    The workers make them, image by image, and they are copied to the device batch by batch.
    """
    shuffled, device = stream.shuffled, stream.device
    cuda, ahead = device.type == "cuda", AHEAD if shuffled.workers else None
    loader = DataLoader(
        Masked(shuffled, case),
        batch_sampler=_Batches(shuffled),
        num_workers=shuffled.workers,
        prefetch_factor=ahead,
        pin_memory=cuda,
    )
    for images, index, epoch, content, query in loader:
        batch = stream.prepared(Batch(images, index, int(epoch[0])))
        yield {
            "images": batch["images"],
            "tokens": batch["tokens"],
            "predicted": predicted_positions(batch["order"], case.recipe.context),
            "content_mask": content.to(device, non_blocking=True),
            "query_mask": query.to(device, non_blocking=True),
        }


def plainly(stream: PretrainBatches, case: Case) -> Iterator[dict[str, Tensor]]:
    """The batches of ``stream`` as they are."""
    return stream(0)


LOADERS = {OURS: plainly, "dense": with_masks}


class _Batches:
    """(epoch, place) of the images of each step."""

    def __init__(self, shuffled: Shuffled) -> None:
        self.shuffled = shuffled

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = 0
        while True:
            sequence = self.shuffled.sequence(epoch).tolist()
            for turn in range(self.shuffled.steps_per_epoch):
                first = turn * self.shuffled.batch_size
                yield [(epoch, place) for place in sequence[first : first + self.shuffled.batch_size]]
            epoch += 1


class Masked(Dataset[tuple[Tensor, int, int, Tensor, Tensor]]):
    """(epoch, place) → pixels (3, H, W) uint8, place, epoch, and the masks of this one image, all heads."""

    def __init__(self, shuffled: Shuffled, case: Case) -> None:
        self.source, self.view, self.crops = shuffled.source, shuffled.views[0], shuffled.crops
        self.recipe, self.heads = case.recipe, _heads(case)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int, int, Tensor, Tensor]:
        epoch, place = item
        image = self.source.read(place)
        seen = self.crops(epoch, [place])[0](image, self.view) if self.crops else self.view(image)
        pixels = torch.from_numpy(np.array(seen)).permute(2, 0, 1).contiguous()
        recipe = self.recipe
        order = STRATEGIES[recipe.objective.order](
            recipe.grid, recipe.num_masked, recipe.seed, epoch, torch.tensor([place])
        )
        content, query = dense_masks(order, recipe.context, self.heads)
        return pixels, place, epoch, content[0], query[0]
