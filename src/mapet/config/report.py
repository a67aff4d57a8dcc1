"""Settings of a report."""

from typing import Annotated, Literal

from pydantic import Field

from mapet.config.setting import Option, Seed, settings


@settings
class ReportSettings:
    """Settings of ``report``."""

    images: Annotated[int, Field(ge=0, le=32), Option(common=True)] = 4
    """Images that are shown; 0 draws only what the folder's files hold, without model and data."""
    most: Annotated[int, Field(ge=10), Option(common=True)] = 500
    """Most images that are read, for neighbours, typical patches and the confusion matrix."""
    seed: Annotated[Seed, Option(common=True)] = 0
    """Random seed of their choice."""
    accelerator: Annotated[Literal["auto", "cpu", "cuda", "mps"], Option(common=True)] = "auto"
    """auto, cpu, cuda or mps."""
