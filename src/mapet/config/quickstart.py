"""Settings of ``mapet quickstart``."""

from typing import Annotated

from pydantic import Field

from mapet.config.recipe import Accelerator
from mapet.config.setting import Count, Seed, settings


@settings
class QuickstartSettings:
    """What of the quickstart can be changed."""

    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the images; None: sized to the machine."""
    max_images: Count | None = None
    """Images to pre-train on; None: sized to the machine."""
    seed: Seed = 0
    """Random seed."""
    accelerator: Accelerator = "auto"
    """auto, cpu, cuda or mps."""
