"""A uniform sample of patch features, bounded in memory, that does not depend on the order of the pictures."""

import torch
from torch import Tensor

from mapet.errors import MapetError
from mapet.hashing import hashed

PATCH = 0x5041  # salt


class PatchSample:
    """The ``count`` patches with the smallest hashed keys: uniform, without replacement, of all that are shown.

    The key of a patch is ``hashed(seed, salt, picture, patch)``, so batches may come in any size and order. At most
    1.25 ``count`` vectors are held (on the CPU, in memory that is taken as it fills), and a sorted copy at the end.

    Args:
        count: vectors to keep.
        width: F.
        seed: another seed keeps other patches.

    Raises:
        MapetError: not enough memory.
    """

    def __init__(self, count: int, width: int, seed: int):
        self.count, self.seed, self.filled = count, seed, 0
        room = count + max(count // 4, 1)
        try:
            self._vectors = torch.empty(room, width)
        except RuntimeError:
            raise MapetError(
                f"A sample of {count} vectors of {width} channels needs {room * width * 4 / 2**30:.0f} GiB of memory: "
                "use fewer samples."
            ) from None
        self._keys = torch.empty(room, dtype=torch.int64)
        self._highest = torch.iinfo(torch.int64).max

    def add(self, features: Tensor, index: Tensor) -> None:
        """Show the features (B, L, F) of the pictures ``index`` (B,) int64; a picture is to be shown once."""
        patches = torch.arange(features.shape[1])
        keys = hashed(self.seed, PATCH, index.cpu()[:, None], patches).flatten()
        candidates = (keys <= self._highest).nonzero().flatten()
        vectors = features.flatten(0, 1)[candidates.to(features.device)].float().cpu()
        keys = keys[candidates]
        while len(keys):
            taken = min(len(keys), len(self._keys) - self.filled)
            here = slice(self.filled, self.filled + taken)
            self._keys[here], self._vectors[here] = keys[:taken], vectors[:taken]
            self.filled += taken
            keys, vectors = keys[taken:], vectors[taken:]
            if self.filled == len(self._keys):
                self._prune()

    def _prune(self) -> None:
        """Keep the ``count`` smallest keys, moving what is kept from the end of the pool into the holes before it."""
        self._highest = int(self._keys.kthvalue(self.count).values)
        keep = self._keys.argsort(stable=True)[: self.count].sort().values
        movers = keep[keep >= self.count]
        stays = torch.zeros(self.count, dtype=torch.bool).index_fill_(0, keep[keep < self.count], True)
        holes = (~stays).nonzero().flatten()
        self._keys[holes], self._vectors[holes] = self._keys[movers], self._vectors[movers]
        self.filled = self.count

    def vectors(self) -> Tensor:
        """The sample (n, F) float32 in the order of its keys; n is below ``count`` only if fewer patches were shown."""
        order = self._keys[: self.filled].argsort(stable=True)[: self.count]
        return self._vectors[order]
