"""The images that a verb reads, divided among processes, and the list of those that cannot be read."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.config.recipe import Recipe, Runtime, Tokenizer
from mapet.config.verbs import BATCH_SIZE
from mapet.utils import owned
from mapet.utils.errors import MapetError
from mapet.utils.process_group import SINGLE_PROCESS, ProcessGroup

if TYPE_CHECKING:
    from torch import Tensor

    from mapet.data.dataset import ImageDataset
    from mapet.data.unreadable import UnreadableImages
    from mapet.utils.view import CenterCropResize

UNREADABLE = "unreadable-images.txt"


def absolute_paths(verb: str, data: str | Path, out: str | Path) -> tuple[str, Path]:
    """The images and the folder for results by their absolute paths; ``cifar10`` is not a path.

    Raises:
        MapetError: one of them is missing.
    """
    if not str(data) or not str(out):
        raise MapetError(f"mapet {verb} needs one DATA (a folder of images, or cifar10) and one --out FOLDER.")
    return "cifar10" if data == "cifar10" else str(absolute(data)), absolute(out)


def absolute(path: str | Path) -> Path:
    """The path from the root; ``~`` is the user's home."""
    return Path(path).expanduser().absolute()


def require_inputs_outside(out: Path, data: str, t: Tokenizer) -> None:
    """Refuse a folder for results that holds an input; the tokenizer that an earlier call fitted there may be one.

    Raises:
        MapetError: both are named.
    """
    fitted_there = t.path and Path(t.path).expanduser().resolve() == (out / "tokenizer").resolve()
    owned.require_apart(out, data=data, tokenizer=None if fitted_there else t.path)
    owned.require_apart(out, teacher=t.teacher, teacher_weights=t.teacher_weights)


@dataclass(frozen=True)
class ImagePass:
    """Some images of a dataset, for one process or several.

    Attributes:
        source: the dataset.
        indices: (N,) int64, of the images in it, the same on every process.
        runtime: how they are read.
        unreadable: the images that could not be read; all processes share its file.
        group: the processes.
        batch_size: images in a batch.
    """

    source: "ImageDataset"
    indices: "Tensor"
    runtime: Runtime
    unreadable: "UnreadableImages"
    group: ProcessGroup = SINGLE_PROCESS
    batch_size: int = BATCH_SIZE

    @classmethod
    def open(
        cls, recipe: Recipe, runtime: Runtime, folder: Path, group: ProcessGroup, batch_size: int = BATCH_SIZE
    ) -> "ImagePass":
        """The images of a recipe; a list of unreadable ones in ``folder`` is continued.

        Args:
            recipe: names the dataset, and how many of its images are used.
            runtime: how they are read.
            folder: must exist when the first image cannot be read.
            group: the processes.
            batch_size: images in a batch.

        Raises:
            MapetError: no images there.
        """
        from mapet.build.batches import choose_indices
        from mapet.data.dataset import open_dataset
        from mapet.data.unreadable import UnreadableImages

        source = open_dataset(recipe.data, max_pixels=recipe.max_pixels, draft=recipe.draft)
        indices = choose_indices(source, recipe.max_images, recipe.seed)
        unreadable = UnreadableImages(len(indices), runtime.max_bad_fraction, folder / UNREADABLE)
        return cls(source, indices, runtime, unreadable, group, batch_size)

    def decode(self, view: "CenterCropResize", indices: "Tensor") -> "Iterator[tuple[Tensor, Tensor]]":
        """(images (B, 3, H, W) uint8, indices (B,)) of all readable images among ``indices``, in batches.

        Raises:
            MapetError: too many unreadable images.
        """
        import torch

        from mapet.data.decode import decode
        from mapet.engine.distributed import pick_device, pick_workers

        workers = pick_workers(self.runtime.workers, pick_device(self.runtime.accelerator))
        groups = ((0, part.tolist()) for part in torch.split(indices, self.batch_size)) if len(indices) else ()
        for batch in decode(self.source, [view], groups, workers=workers, bad=self.unreadable):
            if len(batch.index):
                yield batch.images, batch.index

    def synchronize(self) -> None:
        """Wait until all processes have read their images, and learn which ones the others could not read."""
        self.group.wait()
        self.unreadable.reload()
        self.group.wait()
