"""Which part of an image is looked at, and at what size: a value that tokens and pixels must share."""

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
            raise MapetError(f"A view of {self.size} pixels is empty: give a height and a width of at least 1.")

    def __call__(self, image: "Image.Image", box: Box | None = None) -> "Image.Image":
        """Cut and resize one PIL image; antialiased, as PIL does it. With ``box``, all of that, and nothing else."""
        from PIL import Image, ImageOps

        height, width = self.size
        method = Image.Resampling[self.interpolation.upper()]
        if box is not None:
            return image.crop(box).resize((width, height), method)
        return ImageOps.fit(image, (width, height), method, centering=(0.5, 0.5))

    def at(self, size: tuple[int, int]) -> Self:
        """The same crop at another size, for instance the student's for a teacher's.

        Raises:
            MapetError: the aspects differ, so the two would not see the same part of an image.
        """
        if self.size[0] * size[1] != self.size[1] * size[0]:
            raise MapetError(
                f"A view of {self.size} and one of {size} pixels crop an image differently: use one aspect."
            )
        return replace(self, size=size)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form; ``from_dict`` reads it back."""
        return {**asdict(self), "size": list(self.size)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Read what ``to_dict`` wrote."""
        return cls(size=(fields["size"][0], fields["size"][1]), interpolation=fields["interpolation"])
