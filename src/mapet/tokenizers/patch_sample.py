"""A uniform sample of patch features, bounded in memory, that does not depend on the order of the images."""

from contextlib import suppress

import torch
from torch import Tensor

from mapet.tokenizers.kmeans_init import finite
from mapet.tokenizers.vector_pool import Pool
from mapet.utils.errors import MapetError
from mapet.utils.process_group import SINGLE_PROCESS, ProcessGroup
from mapet.utils.rng import random_bits

PATCH = 0x5041  # salt
BLOCK = 1 << 20  # keys made at once
ROW = 100  # bytes for each sampled vector, at most, beside the vector itself: keys, numbers and distances


class PatchSample:
    """The ``count`` patches with the smallest hashed keys of all images: uniform, without replacement.

    The key of a patch is ``random_bits(seed, salt, image, patch)``, so which patches these are is known before an image
    is read, and each vector has its own row in memory that is taken once. Several processes divide the images, and
    each holds the vectors of its own. Patches of images that are never shown are left out in the end.

    Args:
        places: (N,) int64, the numbers of all images, the same on every process.
        patches: L, of each image.
        width: F.
        count: vectors to keep, over all processes.
        seed: another seed keeps other patches.
        crew: the processes.

    Attributes:
        places: those of this process's images that have a patch in the sample; the others need not be shown.

    Raises:
        MapetError: not enough memory.
    """

    def __init__(
        self,
        indices: Tensor,
        patches: int,
        width: int,
        count: int,
        seed: int,
        process_group: ProcessGroup = SINGLE_PROCESS,
    ):
        self.patches, self.seed, self.process_group = patches, seed, process_group
        self._all = self._smallest(indices, count)
        share = process_group.share(indices)
        counts, keys = [], []
        for part in torch.split(share, max(1, BLOCK // patches)):
            inside = self._keys(part) <= self._all[-1]
            counts.append(inside.sum(dim=1))
            keys.append(self._keys(part)[inside])
        self.indices, self._own = share[torch.cat(counts) > 0], torch.cat(keys).sort().values
        self._shown = torch.zeros(len(self._own), dtype=torch.bool)
        try:
            self._vectors = torch.empty(len(self._own), width)
        except RuntimeError:
            raise MapetError(
                f"A sample of {len(self._own)} vectors of {width} channels needs "
                f"{len(self._own) * width * 4 / 2**30:.0f} GiB of memory: use fewer samples."
            ) from None

    def add(self, features: Tensor, index: Tensor) -> None:
        """Show the features (B, L, F) of the images ``index`` (B,) int64.

        Raises:
            MapetError: features that are not finite.
        """
        keys = self._keys(index.cpu()).flatten()
        rows = torch.searchsorted(self._own, keys).clamp_max(len(self._own) - 1)
        hits = (self._own[rows] == keys).nonzero().flatten()
        vectors = features.flatten(0, 1)[hits.to(features.device)].float()
        finite(vectors.sum())
        self._vectors[rows[hits]] = vectors.cpu()
        self._shown[rows[hits]] = True

    def pool(self, device: torch.device | str = "cpu") -> Pool:
        """The vectors shown, numbered by their keys over all processes, to be compared on ``device``.

        They move there if they fit; otherwise they stay where they are, and chunks move.
        """
        kept = self._shown.nonzero().flatten()
        for start in range(0, len(kept), 4096):  # what is kept moves up to the front, without a copy of everything
            part = kept[start : start + 4096]
            self._vectors[start : start + len(part)] = self._vectors[part]
        rows = torch.searchsorted(self._all, self._own[kept])
        present = torch.zeros(len(self._all), dtype=torch.int64)
        present[rows] = 1
        numbers = self.process_group.sum(present).cumsum(0)
        vectors = self._vectors[: len(kept)]
        with suppress(torch.OutOfMemoryError):
            vectors = vectors.to(device)
        return Pool(
            vectors, rows=numbers[rows] - 1, total=int(numbers[-1]), device=device, process_group=self.process_group
        )

    def _keys(self, index: Tensor) -> Tensor:
        return random_bits(self.seed, PATCH, index[:, None], torch.arange(self.patches))

    def _smallest(self, indices: Tensor, count: int) -> Tensor:
        """The ``count`` smallest keys of all, ascending."""
        kept, limit = torch.empty(0, dtype=torch.int64), torch.iinfo(torch.int64).max
        for part in torch.split(indices, max(1, BLOCK // self.patches)):
            keys = self._keys(part)
            kept = torch.cat([kept, keys[keys <= limit]])
            if len(kept) > 1.5 * count + BLOCK:
                kept = kept.sort().values[:count].clone()
                limit = int(kept[-1])
        return kept.sort().values[:count].clone()
