"""The teacher that needs no network: the pixels of a patch themselves."""

from typing import Any

from torch import Tensor, nn

from mapet.utils.view import CenterCropResize

PIXELS = "pixels"


class Pixels(nn.Module):
    """Each patch's own pixels, row by row and channel by channel, in [0, 1]: F = 3 × ``patch_size``².

    It is the floor under every learned teacher: no weights, no labels, no download.

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
        """Images (B, 3, H, W) float32 at ``view.size`` to features (B, L, F), patches row by row."""
        (rows, columns), (height, width) = self.grid, self.view.size
        patches = images.reshape(-1, 3, rows, height // rows, columns, width // columns)
        return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def describe(self) -> dict[str, Any]:
        """What identifies the features, ready for JSON."""
        return {"name": PIXELS, "grid": list(self.grid), "width": self.width, "view": self.view.to_dict()}
