"""The images that a verb goes through, each process its share, and the ledger of those that cannot be read."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.config.recipe import Recipe, Runtime, Tokenizer
from mapet.utils.process_group import SINGLE_PROCESS, ProcessGroup

if TYPE_CHECKING:
    from torch import Tensor

    from mapet.data.dataset import ImageDataset
    from mapet.data.unreadable import UnreadableImages
    from mapet.utils.view import CenterCropResize

BATCH = 64  # images that a teacher or a tokenizer sees at a time
LEDGER = "unreadable-images.txt"


def require_free(folder: Path) -> None:
    """Refuse a folder that neither holds tokens nor was begun for them.

    Raises:
        MapetError: with what it holds.
    """
    from mapet.tokenizers.store import HEADER, KEYS, TOKENS
    from mapet.tokenizers.tokenizer import PART
    from mapet.utils import io as disk

    if not (folder / HEADER).exists() and not (folder / "tokenizer").exists():
        ours = (f"{HEADER}.part", KEYS, TOKENS, f"tokenizer.{PART}")
        disk.require_free(folder, (*ours, *(path.name for path in folder.glob(f"{LEDGER}*"))))


def require_apart(out: str, data: str, t: Tokenizer) -> None:
    """Refuse a folder for results that holds what is read; the tokenizer that an earlier call fitted there may be.

    Raises:
        MapetError: both are named.
    """
    from mapet.utils import owned

    own = t.path and Path(t.path).expanduser().resolve() == Path(out, "tokenizer").resolve()
    owned.require_apart(out, data=data, tokenizer=None if own else t.path)
    owned.require_apart(out, teacher=t.teacher, teacher_weights=t.teacher_weights)


@dataclass(frozen=True)
class ImagePass:
    """Some images of a source, for one process or several.

    Attributes:
        source: what they are from.
        places: (N,) int64, where they are in it, the same on every process.
        machine: how they are read.
        bad: notes this process's unreadable ones.
        crew: the processes.
        batch_size: images handed out at a time.
    """

    source: "ImageDataset"
    indices: "Tensor"
    runtime: Runtime
    bad: "UnreadableImages"
    process_group: ProcessGroup = SINGLE_PROCESS
    batch_size: int = BATCH

    @classmethod
    def of(
        cls, recipe: Recipe, runtime: Runtime, folder: Path, process_group: ProcessGroup, batch_size: int = BATCH
    ) -> "ImagePass":
        """The images of a recipe; the unreadable ones are listed in ``folder``, which must be there when one comes.

        A list that is there is continued.

        Raises:
            MapetError: no images there.
        """
        from mapet.build.batches import chosen
        from mapet.data.dataset import open_dataset
        from mapet.data.unreadable import UnreadableImages

        source = open_dataset(recipe.data)
        indices = chosen(source, recipe.max_images, recipe.seed)
        ledger = folder / (LEDGER if process_group.leads else f"{LEDGER}.{process_group.rank}")
        return cls(
            source,
            indices,
            runtime,
            UnreadableImages(len(indices), runtime.max_bad_fraction, ledger),
            process_group,
            batch_size,
        )

    def decoded(self, view: "CenterCropResize", indices: "Tensor") -> "Iterator[tuple[Tensor, Tensor]]":
        """(images (B, 3, H, W) uint8, places (B,)) of all good images at ``indices``, in batches.

        Raises:
            MapetError: too many bad images.
        """
        import torch

        from mapet.data.decode import decode
        from mapet.engine.distributed import pick_device, pick_workers

        workers = pick_workers(self.runtime.workers, pick_device(self.runtime.accelerator))
        groups = ((0, part.tolist()) for part in torch.split(indices, self.batch_size)) if len(indices) else ()
        for batch in decode(self.source, [view], groups, workers=workers, bad=self.bad):
            if len(batch.index):
                yield batch.images, batch.index

    def settle(self) -> None:
        """Bring the lists of all processes, and of those of an interrupted call, into one.

        Raises:
            MapetError: too many bad images in all.
        """
        from mapet.data.unreadable import listed

        self.process_group.wait()
        path = self.bad.path
        if path is not None and self.process_group.leads:
            for part in sorted(path.parent.glob(f"{LEDGER}.*")):
                for key, reason in listed(part).items():
                    self.bad.add(key, reason)
                part.unlink()
        self.process_group.wait()
