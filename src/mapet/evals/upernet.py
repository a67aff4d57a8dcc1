"""UPerNet (Xiao et al., arXiv 1807.10221) over a plain vision transformer, with BEiT's adapters (arXiv 2106.08254).

Parameters are named as in transformers' ``UperNetForSemanticSegmentation``.

Legend: B images, C classes, D width of the encoder, K channels of the head, (h, w) the grid of patches.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mapet.evals.dense import embedded
from mapet.method.encoder import Encoder, drop_path_scale
from mapet.utils.errors import MapetError

POOL_SCALES = (1, 2, 3, 6)
TAPS = (1 / 3, 1 / 2, 2 / 3, 1)  # of the blocks: 4, 6, 8 and 12 of 12
AUXILIARY_LEVEL = 2  # of the pyramid
DROPOUT = 0.1  # before the classifiers


class ConvModule(nn.Module):
    """Convolution without bias that keeps the size, batch norm, ReLU."""

    def __init__(self, channels: int, out: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False)
        self.batch_norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → (B, out, H, W)."""
        return F.relu(self.batch_norm(self.conv(x)))


class Adapters(nn.Module):
    """Four levels of one size → a pyramid of strides 1/4, 1/2, 1 and 2 patches."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fpn1 = nn.Sequential(
            nn.ConvTranspose2d(dim, dim, 2, 2), nn.BatchNorm2d(dim), nn.GELU(), nn.ConvTranspose2d(dim, dim, 2, 2)
        )
        self.fpn2 = nn.ConvTranspose2d(dim, dim, 2, 2)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Four of (B, D, h, w) → (B, D, 4h, 4w), (B, D, 2h, 2w), (B, D, h, w), (B, D, ⌊h/2⌋, ⌊w/2⌋), at least 1."""
        one, two, three, four = levels
        small = F.max_pool2d(four, 2) if min(four.shape[-2:]) > 1 else four
        return [self.fpn1(one), self.fpn2(two), three, small]


class UperHead(nn.Module):
    """Pyramid pooling of the last level, a feature pyramid over all, and a classifier of every position."""

    def __init__(self, dim: int, channels: int, classes: int) -> None:
        super().__init__()
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvModule(dim, channels, 1)) for scale in POOL_SCALES
        )
        self.bottleneck = ConvModule(dim + len(POOL_SCALES) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(ConvModule(dim, channels, 1) for _ in TAPS[:-1])
        self.fpn_convs = nn.ModuleList(ConvModule(channels, channels, 3) for _ in TAPS[:-1])
        self.fpn_bottleneck = ConvModule(len(TAPS) * channels, channels, 3)
        self.dropout = nn.Dropout2d(DROPOUT)
        self.classifier = nn.Conv2d(channels, classes, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """The pyramid → logits (B, C, 4h, 4w)."""
        *lower, top = levels
        pooled = [_resized(one(top), top) for one in self.psp_modules]
        found = [self.bottleneck(torch.cat([top, *pooled], dim=1))]
        for convolution, level in zip(reversed(self.lateral_convs), reversed(lower), strict=True):
            lateral = convolution(level)
            found.insert(0, lateral + _resized(found[0], lateral))
        merged = [*(one(level) for one, level in zip(self.fpn_convs, found, strict=False)), found[-1]]
        dense = self.fpn_bottleneck(torch.cat([_resized(one, merged[0]) for one in merged], dim=1))
        return self.classifier(self.dropout(dense))


class FCNHead(nn.Module):
    """The auxiliary classifier: one convolution of one level (Long et al., arXiv 1411.4038)."""

    def __init__(self, dim: int, channels: int, classes: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvModule(dim, channels, 3))
        self.dropout = nn.Dropout2d(DROPOUT)
        self.classifier = nn.Conv2d(channels, classes, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """The pyramid → logits (B, C, h, w)."""
        return self.classifier(self.dropout(self.convs(levels[AUXILIARY_LEVEL])))


class Segmenter(Encoder):
    """An encoder with a UPerNet head on four of its blocks, and an auxiliary head for training.

    Args:
        num_classes: C.
        channels: K.
        auxiliary_channels: of the auxiliary head.
        arguments: of ``Encoder``; ``img_size`` is that of training crops and of the windows of ``sliding_logits``.

    Attributes:
        classes: class names in the order of the logits; empty if unknown.
    """

    classes: tuple[str, ...] = ()

    def __init__(self, *, num_classes: int, channels: int = 512, auxiliary_channels: int = 256, **arguments: object):
        super().__init__(**{**arguments, "global_pool": "avg", "num_classes": 0})  # type: ignore[arg-type]
        self.fc_norm = nn.Identity()
        self.num_classes, self.channels, self.auxiliary_channels = num_classes, channels, auxiliary_channels
        depth = len(self.blocks)
        self.taps = [max(1, round(share * depth)) for share in TAPS]
        self.fpn = Adapters(self.embed_dim)
        self.decode_head = UperHead(self.embed_dim, channels, num_classes)
        self.auxiliary_head = FCNHead(self.embed_dim, auxiliary_channels, num_classes)
        for head in (self.decode_head, self.auxiliary_head):
            nn.init.normal_(head.classifier.weight, std=0.01)

    def pyramid(self, images: Tensor, seed: Tensor | None = None) -> list[Tensor]:
        """Normalised (B, 3, H, W), sides multiples of the patch → the adapters' levels; positions are interpolated."""
        rows, grid = embedded(self, images)
        levels = {}
        scales = drop_path_scale(self.blocks, self.drop_path_rate, rows.shape[0], seed)
        for number, (block, scale) in enumerate(zip(self.blocks, scales, strict=True), 1):
            rows = block(rows, scale=scale)
            if number in self.taps:
                levels[number] = rows[:, 1:].transpose(1, 2).unflatten(2, grid)
        found: list[Tensor] = self.fpn([levels[tap] for tap in self.taps])
        return found

    def forward(self, images: Tensor, seed: Tensor | None = None) -> Tensor:
        """Normalised (B, 3, H, W) of any size → logits (B, C, H, W); partial patches are padded with 0."""
        return self.both(images, seed)[0]

    def both(self, images: Tensor, seed: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits of both heads, each (B, C, H, W); the auxiliary ones are None in evaluation mode."""
        (height, width), (ph, pw) = images.shape[-2:], self.patch_size
        padded = F.pad(images, (0, -width % pw, 0, -height % ph))
        levels = self.pyramid(padded, seed)
        heads = [self.decode_head, self.auxiliary_head] if self.training else [self.decode_head]
        found = [_resized(head(levels), padded)[..., :height, :width] for head in heads]
        return found[0], found[1] if self.training else None


def sliding_logits(model: Segmenter, images: Tensor, stride: int | None = None) -> Tensor:
    """(B, 3, H, W) normalised, of any size → (B, C, H, W): the mean logits of all windows that cover a pixel.

    Args:
        model: its ``img_size`` is that of the windows; along a shorter side there is one window of that side.
        images: on the model's device.
        stride: pixels between windows, the last of which ends with the image; None: two thirds of the window.

    Raises:
        MapetError: a stride above a window's side.
    """
    require_stride(stride, model)
    tops, lefts = (
        _starts(side, window, stride) for side, window in zip(images.shape[-2:], model.img_size, strict=True)
    )
    height, width = model.img_size
    total = images.new_zeros(len(images), model.num_classes, *images.shape[-2:])
    covered = images.new_zeros(images.shape[-2:])
    for top in tops:
        for left in lefts:
            window = (..., slice(top, top + height), slice(left, left + width))
            total[window] += model(images[window]).float()
            covered[window] += 1
    return total / covered


def require_stride(stride: int | None, model: Segmenter) -> None:
    """Refuse a stride that would leave pixels between the windows.

    Raises:
        MapetError: with the side of a window.
    """
    if stride is not None and stride > min(model.img_size):
        raise MapetError(f"--stride must be <= {min(model.img_size)}, the side of a window, got {stride}.")


def _starts(side: int, window: int, stride: int | None) -> list[int]:
    """Where windows begin."""
    last = max(0, side - window)
    return [*range(0, last, stride or max(1, 2 * window // 3)), last]


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)
