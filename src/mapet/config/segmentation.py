"""Settings of the verbs for segmentation."""

from typing import Annotated

from pydantic import Field

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
