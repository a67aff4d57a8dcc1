"""The centred crop and size of an image, which tokens and pixels must share."""

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from mapet.utils.errors import MapetError, nearest

if TYPE_CHECKING:
    from PIL import Image

INTERPOLATIONS = ("bicubic", "bilinear", "lanczos", "nearest")
Box = tuple[int, int, int, int]  # left, upper, right, lower in pixels, as PIL counts them


@dataclass(frozen=True)
class CenterCropResize:
    """The largest centred crop of ``size``'s aspect, resized to ``size`` = (height, width) in pixels.

    Raises:
        MapetError: an unknown interpolation or a size below one pixel.
    """

    size: tuple[int, int]
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            hint = nearest(self.interpolation, INTERPOLATIONS)
            raise MapetError(f'There is no interpolation "{self.interpolation}".{hint}')
        if min(self.size) < 1:
            raise MapetError(f"Height and width of a view must be >= 1, got {self.size}.")

    def __call__(self, image: "Image.Image", box: Box | None = None) -> "Image.Image":
        """Crop and resize one PIL image, antialiased as in PIL; with ``box``, crop to that box instead."""
        from PIL import Image, ImageOps

        height, width = self.size
        method = Image.Resampling[self.interpolation.upper()]
        if box is not None:
            return image.crop(box).resize((width, height), method)
        return ImageOps.fit(image, (width, height), method, centering=(0.5, 0.5))

    def at(self, size: tuple[int, int]) -> Self:
        """The same crop at another size, such as the student's for a teacher's.

        Raises:
            MapetError: the aspect ratios differ, so the two would show different parts of an image.
        """
        if self.size[0] * size[1] != self.size[1] * size[0]:
            raise MapetError(f"Views of {self.size} and {size} pixels crop an image differently: use one aspect ratio.")
        return replace(self, size=size)

    def to_dict(self) -> dict[str, Any]:
        """Fields for JSON; ``from_dict`` reads them."""
        return {**asdict(self), "size": list(self.size)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """The view that ``to_dict`` described."""
        return cls(size=(fields["size"][0], fields["size"][1]), interpolation=fields["interpolation"])
