"""The batch size of a training: whether the images suffice, and how it is divided."""

from typing import TYPE_CHECKING

from mapet.config.runtime import Runtime
from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    from mapet.data.dataset import ImageDataset


def require_batch(source: "ImageDataset", max_images: int | None, batch_size: int) -> None:
    """Refuse a source that gives fewer images than one batch."""
    count = min(len(source), max_images or len(source))
    if count < batch_size:
        raise MapetError(
            f"{source.name} gives {count} images, fewer than one batch of {batch_size}: lower --batch-size."
        )


def batch_line(batch_size: int, lr: float, runtime: Runtime) -> str:
    """The batch size, how it is divided, and the largest learning rate: "2048 = 8 devices × 4 parts × 64, lr …"."""
    parts, share = runtime.parts(batch_size), batch_size // runtime.processes
    factors = [(runtime.processes, " devices"), (parts, " parts"), (-(-share // parts), "")]
    most = "at most " if share % parts else ""
    split = " × ".join(f"{most * (not what)}{number}{what}" for number, what in factors if number > 1 or not what)
    return f"{batch_size}{f' = {split}' if runtime.processes * parts > 1 else ''}, lr {lr:.2e}"
