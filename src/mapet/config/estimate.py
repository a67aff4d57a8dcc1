"""Settings of the estimated training time."""

from typing import Annotated

from pydantic import Field

from mapet.config.setting import Count, PathText, require, settings


@settings
class EstimateSettings:
    """Devices, images, and how fast a device is: one of bench, measure and tflops says that."""

    devices: Count = 1
    """Devices that share each batch."""
    images: Count | None = None
    """Images per epoch; None: the recipe's."""
    bench: PathText | None = None
    """A bench.json that mapet bench wrote on such a device."""
    measure: bool = False
    """Measure this machine, which takes some seconds."""
    tflops: Annotated[float, Field(gt=0)] | None = None
    """TFLOP/s that a device achieves in this training."""

    def __post_init__(self) -> None:
        sources = (self.bench is not None, self.measure, self.tflops is not None)
        require((sum(sources) <= 1, "--bench, --measure and --tflops exclude each other: give one of them."))

    @property
    def has_rate(self) -> bool:
        """Whether it is known, or will be measured, how fast a device is."""
        return self.bench is not None or self.measure or self.tflops is not None
