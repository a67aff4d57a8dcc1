"""A uniform sample of patch features with bounded memory, whatever the order of the images."""

from contextlib import suppress

import torch
from torch import Tensor

from mapet.tokenizers.kmeans_init import finite
from mapet.tokenizers.vector_pool import VectorPool
from mapet.utils.errors import MapetError
from mapet.utils.process_group import SINGLE_PROCESS, ProcessGroup
from mapet.utils.rng import random_bits

PATCH = 0x5041  # salt
BLOCK = 1 << 20  # keys computed at once
ROW = 100  # maximum bytes per sampled vector besides the vector: keys, indices and distances


class PatchSample:
    """The ``count`` patches with the smallest random keys: a uniform sample without replacement.

    The key of a patch is ``random_bits(seed, salt, image, patch)``, so the sample is known before any image is read,
    and each vector has its row in memory. The processes share the images, and each holds the vectors of its share.
    Patches of images that are never added are dropped in the end.

    Args:
        indices: (N,) int64, indices of all images, the same on every process.
        patches: L, patches per image.
        width: F.
        count: vectors of the sample, over all processes.
        seed: random seed.
        process_group: the processes.

    Attributes:
        indices: this process's images with a patch in the sample; the others need not be added.

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
        self._added = torch.zeros(len(self._own), dtype=torch.bool)
        try:
            self._vectors = torch.empty(len(self._own), width)
        except RuntimeError:
            raise MapetError(
                f"A sample of {len(self._own)} vectors of {width} channels needs "
                f"{len(self._own) * width * 4 / 2**30:.0f} GiB of memory: use fewer samples."
            ) from None

    def add(self, features: Tensor, index: Tensor) -> None:
        """Add the features (B, L, F) of the images ``index`` (B,) int64.

        Raises:
            MapetError: features with NaN or Inf.
        """
        keys = self._keys(index.cpu()).flatten()
        rows = torch.searchsorted(self._own, keys).clamp_max(len(self._own) - 1)
        hits = (self._own[rows] == keys).nonzero().flatten()
        vectors = features.flatten(0, 1)[hits.to(features.device)].float()
        finite(vectors.sum())
        self._vectors[rows[hits]] = vectors.cpu()
        self._added[rows[hits]] = True

    def pool(self, device: torch.device | str = "cpu") -> VectorPool:
        """The added vectors, numbered by their keys over all processes, for comparisons on ``device``.

        They move to ``device`` if they fit; otherwise chunks move there when they are used.
        """
        kept = self._added.nonzero().flatten()
        for start in range(0, len(kept), 4096):  # compact in place, without a copy of everything
            part = kept[start : start + 4096]
            self._vectors[start : start + len(part)] = self._vectors[part]
        rows = torch.searchsorted(self._all, self._own[kept])
        present = torch.zeros(len(self._all), dtype=torch.int64)
        present[rows] = 1
        numbers = self.process_group.sum(present).cumsum(0)
        vectors = self._vectors[: len(kept)]
        with suppress(torch.OutOfMemoryError):
            vectors = vectors.to(device)
        return VectorPool(
            vectors, rows=numbers[rows] - 1, total=int(numbers[-1]), device=device, process_group=self.process_group
        )

    def _keys(self, index: Tensor) -> Tensor:
        return random_bits(self.seed, PATCH, index[:, None], torch.arange(self.patches))

    def _smallest(self, indices: Tensor, count: int) -> Tensor:
        """The ``count`` smallest keys of all images, ascending."""
        kept, limit = torch.empty(0, dtype=torch.int64), torch.iinfo(torch.int64).max
        for part in torch.split(indices, max(1, BLOCK // self.patches)):
            keys = self._keys(part)
            kept = torch.cat([kept, keys[keys <= limit]])
            if len(kept) > 1.5 * count + BLOCK:
                kept = kept.sort().values[:count].clone()
                limit = int(kept[-1])
        return kept.sort().values[:count].clone()
