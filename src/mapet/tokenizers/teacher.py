"""Teachers: frozen features on the student's grid, from any timm model."""

import json
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from mapet.tokenizers.batch_norm import fold_batch_norms
from mapet.tokenizers.files import fingerprint
from mapet.tokenizers.pixels import PIXELS, Pixels
from mapet.tokenizers.timm_backbone import CONFIG, OFFLINE, OFFLINE_STAGE, build, exported, listing, stages
from mapet.utils.errors import MapetError, nearest
from mapet.utils.view import CenterCropResize

OUTPUTS = ("stage", "norm", "head")
TOGETHER = 16  # images that a CPU computes together: their activations stay in its caches


class Features(Protocol):
    """Interface of a teacher.

    Attributes:
        name: name of the backbone.
        source: name or folder by which ``open_teacher`` finds the teacher again.
        stage: feature stage of the backbone.
        grid: (rows, columns) of patches.
        width: channels F of the features.
        view: crop and size of the input.
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
        """Images (B, 3, H, W) float32 in [0, 1] at ``view.size`` to features (B, L, F), patches in row-major order."""

    def to(self, device: Any) -> Self:
        """The teacher on another device."""

    def describe(self) -> dict[str, Any]:
        """Fields that identify the features, for JSON."""


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
    """A ``Teacher``, or ``Pixels`` of patches of ``patch_size`` for the name "pixels".

    Raises:
        MapetError: as ``Teacher``; or a stage, an output or weights for "pixels".
    """
    if name != PIXELS:
        return Teacher(name, grid, stage=stage, output=output, weights=weights, pretrained=pretrained)
    if stage is not None or weights or output != "stage":
        raise MapetError('The teacher "pixels" has no stages, outputs or weights: remove these settings.')
    return Pixels(grid, patch_size)


def require_teacher(name: str) -> None:
    """Refuse an unknown teacher, before anything is built.

    Raises:
        MapetError: neither "pixels" nor a timm model.
    """
    if name != PIXELS:
        stages(name)


class Teacher(nn.Module):
    """Features of one stage of a frozen backbone, at the input size for which the stage's grid is the student's.

    The last stage of a CLIP ResNet is the one before attention pooling, which k-CLIP clusters in "Learning to Mask and
    Permute Visual Tokens for Vision Transformer Pre-Training" (arXiv 2306.07346). Features are not normalised; position
    embeddings are resampled if the input size differs from the backbone's.

    Args:
        name: a timm model name; ``efficientnet_lite0``, whose weights need no download; or the folder of a run that was
            exported to timm, or of such an export.
        grid: (rows, columns) of the student's patches.
        stage: index of timm's feature stage; None for the last (for ``efficientnet_lite0``: stride 16).
        output: "stage" for the stage's features; or, per patch of a vision transformer's last block, "norm" for the
            output of the final norm, or "head" for that of norm and head (for CLIP the projected tokens of VQ-KD).
        weights: a local weights file instead of the published weights.
        pretrained: without a file, use the published weights; else random ones with a fixed seed.

    Attributes:
        width: channels F of the features.
        view: crop and size of the input.
        origin: "published", "random", or the name of the weights file.
        source: ``name``, or the folder's absolute path.

    Raises:
        MapetError: unknown backbone, stage or output; a grid that the backbone cannot give; weights that cannot be
            loaded.
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
        """The module that follows the stage."""
        if output not in OUTPUTS:
            raise MapetError(f'There is no output "{output}" of a teacher.{nearest(output, OUTPUTS)}')
        if output == "stage":
            return nn.Identity()
        head: Any = getattr(tower, "head", None)
        last = hasattr(tower, "fc_norm") and self.stage == stages - 1
        if not last or (output == "head" and not isinstance(head, nn.Linear)):
            raise MapetError(
                f'{self.name} has no output "{output}" at stage {self.stage}: it needs the last block of a vision '
                'transformer with a final norm, and "head" also a linear head. Remove --teacher-output.'
            )
        if output == "norm":
            return tower.fc_norm
        self.width = head.out_features
        return nn.Sequential(tower.fc_norm, head)

    def _take(self, tower: Any) -> None:
        """Freeze and keep the backbone. Channels-last makes CNNs on a CPU two to four times as fast."""
        self.tower = tower.to(memory_format=torch.channels_last)
        self.register_buffer("mean", torch.tensor(tower.pretrained_cfg["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(tower.pretrained_cfg["std"]).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def _fit(self, pairs: list[tuple[int, int]]) -> None:
        """Set the input size, remove the layers after the stage, try one image, and fold batch norms."""
        size: tuple[int, int] = self.view.size
        native: tuple[int, int] = self.tower.pretrained_cfg["input_size"][-2:]
        example = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
        try:
            if tuple(native) != size and hasattr(self.tower, "set_input_size"):
                self.tower.set_input_size(img_size=size)
            self.tower.prune_intermediate_layers([self.stage], prune_norm=self.output == "stage", prune_head=True)
            found = tuple(self._map(example).shape[1:])
        except (AssertionError, RuntimeError, ValueError):
            found = ()
        if found != (self.width, *self.grid):
            raise MapetError(
                f"Stage {self.stage} of {self.name} cannot give a grid of {self.grid[0]}x{self.grid[1]} at "
                f"{size[0]}x{size[1]} pixels. At its native {native[0]}x{native[1]} it has {listing(pairs, native)}."
            )
        fold_batch_norms(self.tower, self._map, example)

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) float32 in [0, 1] at ``view.size`` to features (B, L, F), patches in row-major order."""
        parts = len(images) // TOGETHER if images.device.type == "cpu" else 1
        return torch.cat([self._map(part).flatten(2).transpose(1, 2) for part in images.tensor_split(max(1, parts))])

    @torch.no_grad()
    def _map(self, images: Tensor) -> Tensor:
        images = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        features: list[Tensor] = self.tower.forward_intermediates(
            images, indices=[self.stage], norm=self.output != "stage", output_fmt="NCHW", intermediates_only=True
        )
        return self._last(features[0].movedim(1, -1)).movedim(-1, 1)

    def describe(self) -> dict[str, Any]:
        """Fields that identify the features, for JSON; ``weights`` is a hash of the backbone's state dict."""
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
