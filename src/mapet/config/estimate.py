"""Settings of the estimated training time."""

from dataclasses import dataclass

from mapet.utils.errors import MapetError


@dataclass(frozen=True)
class EstimateSettings:
    """Devices, images, and how fast a device is: one of bench, measure and tflops says that."""

    devices: int = 1
    """Devices that share each batch."""
    images: int | None = None
    """Images per epoch; None: the recipe's."""
    bench: str | None = None
    """A bench.json that mapet bench wrote on such a device."""
    measure: bool = False
    """Measure this machine, which takes some seconds."""
    tflops: float | None = None
    """TFLOP/s that a device achieves in this training."""

    def __post_init__(self) -> None:
        for option, value, fits, bound in (
            ("devices", self.devices, self.devices >= 1, ">= 1"),
            ("images", self.images, self.images is None or self.images >= 1, ">= 1"),
            ("tflops", self.tflops, self.tflops is None or self.tflops > 0, "> 0"),
        ):
            if not fits:
                raise MapetError(f"--{option} must be {bound}, got {value}.")
        if sum((self.bench is not None, self.measure, self.tflops is not None)) > 1:
            raise MapetError("--bench, --measure and --tflops exclude each other: give one of them.")

    @property
    def has_rate(self) -> bool:
        """Whether it is known, or will be measured, how fast a device is."""
        return self.bench is not None or self.measure or self.tflops is not None
