"""Images through a network in sequence: one row of numbers for each readable image."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mapet.config.use import ReadingSettings
from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    from torch import Tensor

    from mapet.api.journal import Line, Rows
    from mapet.data.crop import TransformPolicy
    from mapet.data.dataset import ImageDataset
    from mapet.method.encoder import Encoder


@dataclass(frozen=True)
class ModelPass:
    """All images of a dataset through a function of batches.

    Attributes:
        source: the images.
        model: its ``img_size`` is that of the images; it is moved to the device, in evaluation mode.
        crop_pct: share of an image's shorter side that is cropped, centred.
        compute: (B, 3, H, W) normalised → (B, …) float32, by the model.
        settings: how the images are read.
        crops: what is shown of each image instead of that crop.

    Raises:
        MapetError: the model does not take RGB images, or a pack cannot show them.
    """

    source: "ImageDataset"
    model: "Encoder"
    crop_pct: float
    compute: "Callable[[Tensor], Tensor]"
    settings: ReadingSettings
    crops: "TransformPolicy | None" = None

    def __post_init__(self) -> None:
        from mapet.data.decode import require_shown
        from mapet.utils.view import CenterCropResize

        if self.model.in_chans != 3:
            raise MapetError(f"FROM takes images of {self.model.in_chans} channels, and images are read as RGB.")
        require_shown(self.source, [CenterCropResize(self.model.img_size)], self.shown)

    @property
    def shown(self) -> "TransformPolicy | None":
        """What is shown of each image; None: the view's whole centred crop."""
        from mapet.data.policy import Centre

        return self.crops or (None if self.crop_pct == 1 else Centre(self.crop_pct))

    def __call__(
        self, label: str, start: int = 0, known: "Sequence[Line]" = ()
    ) -> "Iterator[tuple[list[Line], Rows | None]]":
        """The lines and rows of each batch from image ``start`` on; ``known`` are the unreadable images before it.

        Raises:
            MapetError: too many unreadable images, or no readable one.
        """
        import torch

        from mapet.data.augment import normalize, to_float
        from mapet.data.decode import decode
        from mapet.data.unreadable import UnreadableImages
        from mapet.engine.distributed import pick_device, pick_workers
        from mapet.engine.progress import Meter
        from mapet.utils.view import CenterCropResize

        s, count, device = self.settings, len(self.source), pick_device(self.settings.accelerator)
        bad, view = UnreadableImages(count, s.max_bad_fraction), CenterCropResize(self.model.img_size)
        for image_id, reason in known:
            bad.add(image_id, reason)
        parts = [range(first, min(first + s.batch_size, count)) for first in range(start, count, s.batch_size)]
        workers = pick_workers(s.workers, device)
        batches = decode(self.source, [view], ((0, part) for part in parts), crops=self.shown, workers=workers, bad=bad)
        self.model.to(device).eval()
        with Meter(label, count, start) as meter:
            for part, batch in zip(parts, batches, strict=True):
                good = set(batch.index.tolist())
                with torch.no_grad():
                    images = normalize(to_float(batch.images, device))
                    rows = self.compute(images).float().cpu().numpy() if good else None
                ids = [(i, self.source.image_id(i)) for i in part]
                yield [(one, "" if i in good else bad.reason(one)) for i, one in ids], rows
                if meter.due(part.stop):
                    meter.update(part.stop)
        if len(bad) == count:
            raise MapetError(f"No image can be read: {bad.note()}")
