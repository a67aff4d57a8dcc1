"""Teachers: frozen features on the student's grid, from any timm vision tower."""

import json
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from mapet.tokenizers.files import fingerprint
from mapet.tokenizers.pixels import PIXELS, Pixels
from mapet.tokenizers.timm_backbone import CONFIG, OFFLINE, OFFLINE_STAGE, build, exported, listing, stages
from mapet.utils.errors import MapetError, nearest
from mapet.utils.view import CenterCropResize

OUTPUTS = ("stage", "norm", "head")


class Features(Protocol):
    """What k-means asks of a teacher.

    Attributes:
        name: of the tower.
        source: the name or folder by which ``open_teacher`` finds the teacher again.
        stage: where the tower is read.
        grid: (rows, columns) of patches.
        width: channels F of the features.
        view: the crop and input size that a call expects.
        origin: "published", "random", or the name of the weights file.
    """

    name: str
    source: str
    stage: int
    grid: tuple[int, int]
    width: int
    view: CenterCropResize
    origin: str

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) float32 in [0, 1] at ``view.size`` to features (B, L, F), patches row by row."""

    def to(self, device: Any) -> Self:
        """The teacher on another device."""

    def describe(self) -> dict[str, Any]:
        """What identifies the features, ready for JSON."""


def open_teacher(
    name: str,
    grid: tuple[int, int],
    *,
    patch_size: int = 16,
    stage: int | None = None,
    output: str = "stage",
    weights: Path | None = None,
    pretrained: bool = True,
) -> Features:
    """A ``Teacher``, or ``Pixels`` of patches of ``patch_size`` where the name is "pixels".

    Raises:
        MapetError: as ``Teacher``; or a stage, an output or weights are named for the pixels, which have none.
    """
    if name != PIXELS:
        return Teacher(name, grid, stage=stage, output=output, weights=weights, pretrained=pretrained)
    if stage is not None or weights or output != "stage":
        raise MapetError(
            'The teacher "pixels" has neither stages nor weights, and one output: leave these settings out.'
        )
    return Pixels(grid, patch_size)


def require_teacher(name: str) -> None:
    """Refuse a teacher that does not exist, before anything is built of it."""
    if name != PIXELS:
        stages(name)


class Teacher(nn.Module):
    """A frozen tower, read at one stage, at the input size at which that stage's grid is the student's.

    For a CLIP ResNet the last stage is the last residual stage before attention pooling: what k-CLIP clusters in
    "Learning to Mask and Permute Visual Tokens for Vision Transformer Pre-Training" (arXiv 2306.07346). No
    normalisation is added to the features; position tables are resampled where the size is not the native one.

    Args:
        name: a timm model name; ``efficientnet_lite0``, whose weights need no download; or the folder of a run that
            was exported for timm, or of such an export.
        grid: the student's patches, (rows, columns).
        stage: which of timm's feature stages; None for the last (for ``efficientnet_lite0``: stride 16).
        output: "stage" as it is; or of a vision transformer's last block, for every patch, "norm": what the final norm
            makes of it, or "head": what norm and head make of it (with CLIP the projected tokens that VQ-KD learns).
        weights: a local weights file, used instead of the published weights.
        pretrained: without a file: the published weights, else random ones under a fixed seed.

    Attributes:
        width: channels F of the features.
        view: the crop and input size that ``forward`` expects.
        origin: "published", "random", or the name of the weights file.
        source: ``name``, or the folder's absolute path.

    Raises:
        MapetError: no such tower, stage or output, a grid that the tower cannot give, weights that cannot be had or do
            not fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        grid: tuple[int, int],
        *,
        stage: int | None = None,
        output: str = "stage",
        weights: Path | None = None,
        pretrained: bool = True,
    ):
        super().__init__()
        pairs = stages(name)
        last = OFFLINE_STAGE if name == OFFLINE else len(pairs) - 1
        folder = exported(name)
        self.source = str(folder) if folder else name
        config = json.loads((folder / CONFIG).read_bytes()) if folder else {"architecture": name}
        self.name, self._arguments = config["architecture"], config.get("model_args", {})
        self.grid, self.stage = grid, last if stage is None else stage
        self.origin = weights.name if weights else "published" if pretrained else "random"
        if min(grid) < 1 or not 0 <= self.stage < len(pairs):
            available = listing(pairs, (224, 224))
            raise MapetError(f"{name} has no stage {self.stage} with a grid of {grid}: at 224x224 it has {available}.")
        self.width, stride = pairs[self.stage]
        tower: Any = build(name, weights, pretrained)
        self._weights = fingerprint(tower.state_dict())  # before anything depends on the grid
        self.output, self._last = output, self._finish(tower, output, len(pairs))
        self._take(tower)
        self.view = CenterCropResize((grid[0] * stride, grid[1] * stride), tower.pretrained_cfg["interpolation"])
        self._fit(pairs)

    def _finish(self, tower: Any, output: str, stages: int) -> nn.Module:
        """What every patch goes through behind the stage."""
        if output not in OUTPUTS:
            raise MapetError(f'There is no output "{output}" of a teacher.{nearest(output, OUTPUTS)}')
        if output == "stage":
            return nn.Identity()
        head: Any = getattr(tower, "head", None)
        last = hasattr(tower, "fc_norm") and self.stage == stages - 1
        if not last or (output == "head" and not isinstance(head, nn.Linear)):
            raise MapetError(
                f'{self.name} gives no "{output}" at stage {self.stage}: that is of the last block of a vision '
                'transformer with a norm, and "head" of one with a linear head. Leave --teacher-output out.'
            )
        if output == "norm":
            return tower.fc_norm
        self.width = head.out_features
        return nn.Sequential(tower.fc_norm, head)

    def _take(self, tower: Any) -> None:
        """Keep the tower frozen. Channels-last makes CNNs on a CPU two to four times as fast."""
        self.tower = tower.to(memory_format=torch.channels_last)
        self.register_buffer("mean", torch.tensor(tower.pretrained_cfg["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(tower.pretrained_cfg["std"]).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def _fit(self, pairs: list[tuple[int, int]]) -> None:
        """Set the input size, drop what lies behind the stage, and see by one image that the grid is right."""
        size: tuple[int, int] = self.view.size
        native: tuple[int, int] = self.tower.pretrained_cfg["input_size"][-2:]
        try:
            if tuple(native) != size and hasattr(self.tower, "set_input_size"):
                self.tower.set_input_size(img_size=size)
            self.tower.prune_intermediate_layers([self.stage], prune_norm=self.output == "stage", prune_head=True)
            found = tuple(self._map(torch.zeros(1, 3, *size)).shape[1:])
        except (AssertionError, RuntimeError, ValueError):
            found = ()
        if found != (self.width, *self.grid):
            raise MapetError(
                f"Stage {self.stage} of {self.name} gives no grid of {self.grid[0]}x{self.grid[1]} at "
                f"{size[0]}x{size[1]} pixels. At its own {native[0]}x{native[1]} it has {listing(pairs, native)}."
            )

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in evaluation mode, whatever its parent does."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) float32 in [0, 1] at ``view.size`` to features (B, L, F), patches row by row."""
        return self._map(images).flatten(2).transpose(1, 2)

    @torch.no_grad()
    def _map(self, images: Tensor) -> Tensor:
        images = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        features: list[Tensor] = self.tower.forward_intermediates(
            images, indices=[self.stage], norm=self.output != "stage", output_fmt="NCHW", intermediates_only=True
        )
        return self._last(features[0].movedim(1, -1)).movedim(-1, 1)

    def describe(self) -> dict[str, Any]:
        """What identifies the features, ready for JSON; ``weights`` is a hash of the tower's state dict."""
        return {
            "name": self.name,
            "stage": self.stage,
            "grid": list(self.grid),
            "width": self.width,
            "view": self.view.to_dict(),
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
            "arguments": self._arguments,
            "weights": self._weights,
            **({} if self.output == "stage" else {"output": self.output}),
        }
