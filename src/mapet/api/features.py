"""Features of labelled images: what every evaluation of a frozen encoder reads."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from mapet.config.evaluate import FeatureSettings
from mapet.utils.errors import MapetError
from mapet.utils.log import log

if TYPE_CHECKING:
    from torch import Tensor

    from mapet.data.dataset import ImageDataset
    from mapet.data.unreadable import UnreadableImages
    from mapet.evals.checks import Labelled
    from mapet.method.encoder import Encoder

BATCH, LARGE = 32, 256  # images that the encoder sees at a time: on a CPU what stays in its caches, and elsewhere


class LabelledFeatures(NamedTuple):
    """Features (N, …, F) and labels (N,) of both splits, and the number of classes."""

    train: "Labelled"
    test: "Labelled"
    classes: int


class Features:
    """The features of an encoder on the labelled images ``data``, by pool.

    Those of the last pool are kept, so that several protocols can read them.

    Args:
        encoder: without a head.
        data: a folder with one sub-folder per class, or ``"cifar10"``.
        seed: draws the training images if ``settings`` limits them.
        settings: which images, and how they are read.
    """

    def __init__(self, encoder: "Encoder", data: str, seed: int, settings: FeatureSettings) -> None:
        self.encoder, self.data, self.seed, self.settings = encoder, data, seed, settings
        self._kept: dict[str, LabelledFeatures] = {}

    def __call__(self, pool: str) -> LabelledFeatures:
        """The features of a pool of ``evals.features``; raises as ``extract_features``."""
        if pool not in self._kept:
            self._kept.clear()
            self._kept[pool] = extract_features(self.encoder, self.data, self.seed, self.settings, pool)
        return self._kept[pool]


def extract_features(
    encoder: "Encoder", data: str, seed: int = 0, settings: FeatureSettings | None = None, pool: str = "avg"
) -> LabelledFeatures:
    """Features of both splits of ``data``; arguments as those of ``Features``.

    Raises:
        MapetError: ``data`` has no labels, too many images cannot be read, or the features need more than
            ``settings.cache_gib``.
    """
    from mapet.build.batches import choose_indices
    from mapet.data.dataset import require_labels, train_and_test
    from mapet.data.unreadable import UnreadableImages
    from mapet.engine.distributed import pick_device
    from mapet.evals.features import features

    settings = settings or FeatureSettings()
    splits = train_and_test(data, max_pixels=settings.max_pixels)
    require_labels(*splits)
    selected = [choose_indices(splits[0], settings.max_images, seed), choose_indices(splits[1], None, seed)]
    count = sum(map(len, selected))
    if (needed := features_gib(encoder, pool, count)) > settings.cache_gib:
        raise MapetError(
            f"The features of {count:,} images take {needed:,.2f} GiB, more than --cache-gib {settings.cache_gib:g}: "
            "lower --max-images or raise --cache-gib."
        )
    found = []
    for source, indices in zip(splits, selected, strict=True):
        bad = UnreadableImages(len(indices), settings.max_bad_fraction)
        parts = batches(source, indices, encoder, settings, bad)
        found.append(features(encoder, parts, pool=pool, device=pick_device(settings.accelerator)))
        if note := bad.note():
            log.info(f"note      {note}")
    return LabelledFeatures(found[0], found[1], len(splits[0].classes))


def features_gib(encoder: "Encoder", pool: str, images: int) -> float:
    """GiB that the features of so many images take."""
    width = encoder.embed_dim
    unpooled = {"layers": 2 * 2 * width * len(encoder.blocks), "patches": 2 * width * encoder.length}
    return images * unpooled.get(pool, 4 * width * len(pool.split("+"))) / 2**30


def batches(
    source: "ImageDataset", indices: "Tensor", encoder: "Encoder", settings: FeatureSettings, bad: "UnreadableImages"
) -> "Iterator[tuple[Tensor, Tensor]]":
    """Normalised images (B, 3, H, W) and labels (B,), in the order of ``indices``."""
    import torch

    from mapet.data.augment import normalize, to_float
    from mapet.data.loader import in_order
    from mapet.engine.distributed import pick_device, pick_workers
    from mapet.engine.progress import Meter
    from mapet.utils.view import CenterCropResize

    device, view, done = pick_device(settings.accelerator), CenterCropResize(encoder.img_size), 0
    workers, size = pick_workers(settings.workers, device), BATCH if device.type == "cpu" else LARGE
    with Meter("features", len(indices)) as meter:
        for batch in in_order(source, view, size, workers=workers, bad=bad, indices=indices.tolist()):
            yield normalize(to_float(batch.images)), torch.tensor([source.label(i) for i in batch.index.tolist()])
            done += len(batch.index)
            if meter.due(done):
                meter.update(done)
