"""A teacher without a network: the pixels of each patch."""

from typing import Any

from torch import Tensor, nn

from mapet.utils.view import CenterCropResize

PIXELS = "pixels"


class Pixels(nn.Module):
    """The pixels of each patch, channel by channel, in [0, 1]: F = 3 × ``patch_size``².

    The baseline of every learned teacher: no weights, labels or download.

    Args:
        grid: (rows, columns) of patches.
        patch_size: side of a patch in pixels.
    """

    name, stage, origin, source = PIXELS, 0, "published", PIXELS

    def __init__(self, grid: tuple[int, int], patch_size: int) -> None:
        super().__init__()
        self.grid, self.width = grid, 3 * patch_size**2
        self.view = CenterCropResize((grid[0] * patch_size, grid[1] * patch_size))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) float32 at ``view.size`` to features (B, L, F), patches in row-major order."""
        (rows, columns), (height, width) = self.grid, self.view.size
        patches = images.reshape(-1, 3, rows, height // rows, columns, width // columns)
        return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def describe(self) -> dict[str, Any]:
        """Fields that identify the features, for JSON."""
        return {"name": PIXELS, "grid": list(self.grid), "width": self.width, "view": self.view.to_dict()}
