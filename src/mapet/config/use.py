"""Settings of the verbs that use an encoder or a classifier on images without labels."""

from typing import Annotated, Literal

from pydantic import Field

from mapet.config.recipe import Accelerator
from mapet.config.setting import Count, Option, Seed, Share, settings
from mapet.config.training import MAX_PIXELS


@settings
class ImagesSettings:
    """Which images are read, and where the model computes."""

    split: Annotated[Literal["train", "test"] | None, Option(common=True)] = None
    """Split of cifar10 or a folder; None: all images of a folder, and the training images of cifar10 or a pack."""
    accelerator: Annotated[Accelerator, Option(common=True)] = "auto"
    """Device type; auto: the best available."""
    max_pixels: Count = MAX_PIXELS
    """Largest number of pixels of an image; larger ones are unreadable. Decoding takes about 8 bytes for each."""
    max_bad_fraction: Share = 1.0
    """Largest fraction of images that may be unreadable; 1: any, as long as one image is readable."""


@settings
class MasksSettings(ImagesSettings):
    """Settings of ``masks``."""

    stride: Annotated[Count | None, Option(common=True)] = None
    """Pixels between the windows of an image; None: two thirds of a window."""


@settings
class ReadingSettings(ImagesSettings):
    """How images are read in batches."""

    batch_size: Annotated[Count, Option(common=True)] = 64
    """Images that the model sees at a time."""
    num_heads: Count | None = None
    """Attention heads of a checkpoint file, which does not store them; None: width / 64."""
    workers: Annotated[int | None, Field(ge=0), Option(common=True)] = None
    """Processes that decode images; None: up to 8 with a GPU (4 with mps), none on a CPU."""


@settings
class EmbedSettings(ReadingSettings):
    """Settings of ``embed``."""

    pool: Annotated[Literal["avg", "token", "avg+token", "patches"], Option(common=True)] = "avg"
    """Features: avg (mean of patches), token (class token), avg+token (both, concatenated) or patches (all)."""
    layer: Annotated[Count | None, Option(common=True)] = None
    """Read the rows after so many blocks, without the final norm; None: the encoder's output."""
    normalize: Annotated[bool, Option(common=True)] = False
    """Scale each vector to length 1."""


@settings
class PredictSettings(ReadingSettings):
    """Settings of ``predict``."""

    top_k: Annotated[Count, Option(common=True)] = 5
    """Most probable classes of each image; at most all."""
    crop_pct: Annotated[float | None, Field(gt=0, le=1), Option(common=True)] = None
    """Share of the shorter side that is cropped, centred; None: that of the fine-tuning's tests."""


@settings
class NeighboursSettings:
    """Settings of ``neighbours``."""

    k: Annotated[Count, Option(common=True)] = 11
    """Neighbours; at most all images."""
    images: Annotated[str | None, Option(common=True)] = None
    """Folder that holds the images of the features now, for the sheet; None: where they were embedded."""
    num_heads: Count | None = None
    """Attention heads of a checkpoint file, which does not store them; None: width / 64."""
    accelerator: Annotated[Accelerator, Option(common=True)] = "auto"
    """Device type; auto: the best available."""


@settings
class AttendSettings:
    """Settings of ``attend``."""

    block: Annotated[Count | None, Option(common=True)] = None
    """Block whose heads are shown, from 1; None: the last."""
    patch: Annotated[tuple[int, int] | None, Option(common=True)] = None
    """Row and column, from 0, of the patch with which all others are compared; None: the middle."""
    num_heads: Count | None = None
    """Attention heads of a checkpoint file, which does not store them; None: width / 64."""
    accelerator: Annotated[Accelerator, Option(common=True)] = "auto"
    """Device type; auto: the best available."""


@settings
class RevealSettings:
    """Settings of ``reveal_image``."""

    frames: Annotated[int, Field(ge=1, le=12), Option(common=True)] = 5
    """Frames, from the context alone to the whole image."""
    seed: Annotated[Seed, Option(common=True)] = 0
    """Random seed of the order in which patches are given."""
    accelerator: Annotated[Accelerator, Option(common=True)] = "auto"
    """Device type; auto: the best available."""
