"""Settings of ``mapet quickstart``."""

from dataclasses import dataclass

from mapet.utils.errors import MapetError


@dataclass(frozen=True)
class QuickstartSettings:
    """What of the quickstart can be changed; None: sized to the machine."""

    epochs: float | None = None
    """Passes over the images; None: sized to the machine."""
    max_images: int | None = None
    """Images to pre-train on; None: sized to the machine."""
    seed: int = 0
    """Random seed."""
    accelerator: str = "auto"
    """auto, cpu, cuda or mps."""

    def __post_init__(self) -> None:
        for option, value in (("epochs", self.epochs), ("max-images", self.max_images)):
            if value is not None and value <= 0:
                raise MapetError(f"--{option} must be > 0, got {value}.")
