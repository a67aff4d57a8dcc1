"""What the convolutional tokenizers share: square images, and one token for so many pixels a side."""

from collections.abc import Mapping
from typing import Any

from mapet.tokenizers.tokenizer import Network
from mapet.utils.errors import MapetError
from mapet.utils.view import CenterCropResize


class Convolutional(Network):
    """A network that gives one token for each ``stride`` × ``stride`` pixels of a square image.

    Images are resized by Lanczos' filter, as BEiT and CAE do it for their tokenizers' view.

    Args:
        config: the subclass's keyword arguments; ``image_size`` is the side of its images in pixels.
        stride: pixels a token, along either side.

    Raises:
        MapetError: a size that is not a multiple of the stride.
    """

    def __init__(self, config: Mapping[str, Any], stride: int) -> None:
        super().__init__(config)
        side = config["image_size"]
        if side < stride or side % stride:
            fitting = max(1, round(side / stride)) * stride
            raise MapetError(
                f"This {self.kind} tokenizer gives one token for {stride}x{stride} pixels, and {side} is not a "
                f"multiple of {stride}: use an image size such as {fitting}."
            )
        self.view, self.grid = CenterCropResize((side, side), "lanczos"), (side // stride, side // stride)
