"""Settings of the verbs for segmentation."""

from typing import Annotated

from pydantic import Field

from mapet.config.evaluate import Positive
from mapet.config.recipe import Accelerator
from mapet.config.setting import Count, Option, Seed, settings


@settings
class ShapesSettings:
    """Settings of ``shapes``."""

    classes: Annotated[int, Field(ge=1, le=254), Option(common=True)] = 10
    """Classes: the sub-folders with the most usable images."""
    train: Annotated[Count, Option(common=True)] = 1000
    """Images of the training split."""
    test: Annotated[Count, Option(common=True)] = 250
    """Images of the validation split."""
    size: Annotated[Count, Option(common=True)] = 224
    """Side of the images in pixels."""
    objects: Annotated[Count, Option(common=True)] = 3
    """Most shapes of an image."""
    seed: Annotated[Seed, Option(common=True)] = 0
    """Random seed."""


@settings
class SegmentProbeSettings:
    """Settings of ``segment_probe``."""

    image_size: Annotated[Count | None, Option(common=True)] = None
    """Shorter side of the images that the encoder sees, in whole patches; positions are interpolated. None: that of
    FROM."""
    max_images: Annotated[Count | None, Option(common=True)] = None
    """Use only this many training images, chosen at random; None: all."""
    max_patches: Annotated[Count, Option(common=True)] = 100_000
    """Use about this many training patches, the same number of each image."""
    k: Annotated[Count, Option(common=True)] = 20
    """segment-knn: neighbours that vote."""
    temperature: Positive = 0.07
    """segment-knn: T of a neighbour's weight exp(cosine / T)."""
    reduce_zero_label: bool = True
    """Label 0 is ignored and the classes begin at 1, as in ADE20K; no: they begin at 0. 255 is always ignored."""
    random: Annotated[bool, Option(common=True)] = False
    """Evaluate the encoder of a pre-training run as it was before training."""
    num_heads: Count | None = None
    """Attention heads of a checkpoint file, which does not store them; None: width / 64."""
    seed: Annotated[Seed, Option(common=True)] = 0
    """Random seed of images, patches and the held-out tenth."""
    accelerator: Annotated[Accelerator, Option(common=True)] = "auto"
    """auto, cpu, cuda or mps."""
