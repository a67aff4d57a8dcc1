"""Base class of the convolutional tokenizers: square images, one token per ``stride`` x ``stride`` pixels."""

from collections.abc import Mapping
from typing import Any

from mapet.tokenizers.tokenizer import Network
from mapet.utils.errors import MapetError
from mapet.utils.view import CenterCropResize


class Convolutional(Network):
    """A network with one token per ``stride`` × ``stride`` pixels of a square image.

    Images are resized by Lanczos' filter, as in BEiT and CAE.

    Args:
        config: keyword arguments of the subclass; ``image_size`` is the side of its images in pixels.
        stride: pixels per token and side.

    Raises:
        MapetError: the image size is not a multiple of the stride.
    """

    def __init__(self, config: Mapping[str, Any], stride: int) -> None:
        super().__init__(config)
        side = config["image_size"]
        if side < stride or side % stride:
            fitting = max(1, round(side / stride)) * stride
            raise MapetError(
                f"The image size of a {self.kind} tokenizer must be a multiple of {stride}, got {side}: use {fitting}."
            )
        self.view, self.grid = CenterCropResize((side, side), "lanczos"), (side // stride, side // stride)
