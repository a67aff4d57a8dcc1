"""The data loader of the dense reference, whose workers make each image's masks."""

from collections.abc import Iterator
from pathlib import Path
from shutil import disk_usage

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from baselines.dense import dense_masks, predicted_positions
from mapet.api.benchmark.case import Case
from mapet.api.benchmark.loading import AHEAD
from mapet.build.batches import PretrainBatches
from mapet.build.pretrain import build_encoder
from mapet.data.decode import Batch
from mapet.data.loader import Shuffled
from mapet.method.order import STRATEGIES

SHARED = Path("/dev/shm")  # the workers' shared memory, where there is one


def limited_workers(workers: int, case: Case) -> int:
    """As many of ``workers`` as the shared memory has room for."""
    return fitting(workers, batch_bytes(case), disk_usage(SHARED).free) if SHARED.is_dir() else workers


def fitting(workers: int, batch: int, free: int) -> int:
    """So many of ``workers``, but at least one, that their prefetched batches and the current one fit into ``free``."""
    return min(workers, max(1, (free // batch - 1) // AHEAD))


def batch_bytes(case: Case) -> int:
    """Bytes of one batch with masks."""
    side, grid = case.recipe.model.image_size, case.recipe.grid
    order = torch.empty(case.batch, 1 + grid[0] * grid[1], dtype=torch.int64, device="meta")
    masks = dense_masks(order, case.recipe.context, _heads(case))
    return case.batch * 3 * side**2 + sum(mask.nbytes for mask in masks)


def _heads(case: Case) -> int:
    with torch.device("meta"):
        return build_encoder(case.recipe).num_heads


def with_masks(stream: PretrainBatches, case: Case) -> Iterator[dict[str, Tensor]]:
    """The batches of ``stream`` as the dense reference takes them.

    The workers make the masks, image by image; they are copied to the device batch by batch.
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


class _Batches:
    """(epoch, index) of the images of each step."""

    def __init__(self, shuffled: Shuffled) -> None:
        self.shuffled = shuffled

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = 0
        while True:
            sequence = self.shuffled.sequence(epoch).tolist()
            for turn in range(self.shuffled.steps_per_epoch):
                first = turn * self.shuffled.batch_size
                yield [(epoch, index) for index in sequence[first : first + self.shuffled.batch_size]]
            epoch += 1


class Masked(Dataset[tuple[Tensor, int, int, Tensor, Tensor]]):
    """(epoch, index) → pixels (3, H, W) uint8, index, epoch, and the masks of this image for all heads."""

    def __init__(self, shuffled: Shuffled, case: Case) -> None:
        self.source, self.view, self.crops = shuffled.source, shuffled.views[0], shuffled.crops
        self.recipe, self.heads = case.recipe, _heads(case)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int, int, Tensor, Tensor]:
        epoch, index = item
        image = self.source.read(index)
        seen = self.crops(epoch, [index])[0](image, self.view) if self.crops else self.view(image)
        pixels = torch.from_numpy(np.array(seen)).permute(2, 0, 1).contiguous()
        recipe = self.recipe
        order = STRATEGIES[recipe.objective.order](
            recipe.grid, recipe.num_masked, recipe.seed, epoch, torch.tensor([index])
        )
        content, query = dense_masks(order, recipe.context, self.heads)
        return pixels, index, epoch, content[0], query[0]
