"""VQ-KD, the tokenizer of BEiT v2 (Peng et al., arXiv 2208.06366): a ViT with vector-quantised patch features.

Encoder → linear, tanh, linear → unit vector → nearest unit code. ``vqkd_train.py`` trains one.
Legend: B images, L patches, D width, C width of a code, K codes.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar, Self

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import normalize

from mapet.tokenizers.kmeans import assign
from mapet.tokenizers.tokenizer import Network, in_view
from mapet.utils.errors import MapetError
from mapet.utils.view import CenterCropResize
from mapet.utils.weights import count, extent, fill, join_qkv_bias

Pair = int | Sequence[int]
USED = ("encoder.", "encode_task_layer.")
CODES = "quantize.embedding.weight"
WHAT = "BEiT v2's tokenizer (VQ-KD) at this image size, patch size and number of heads"


class VQKD(Network):
    """Images to the nearest of K unit codes; the defaults are the published sizes.

    Args:
        image_size: pixels, or (height, width).
        patch_size: pixels, or (height, width).
        embed_dim: D.
        depth: encoder blocks.
        num_heads: attention heads per block.
        codes: K.
        code_dim: C.

    Raises:
        MapetError: the patch size does not divide the image size, or the heads do not divide the width.
    """

    kind: ClassVar[str] = "vqkd"
    codes: Tensor

    def __init__(
        self,
        *,
        image_size: Pair = 224,
        patch_size: Pair = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        codes: int = 8192,
        code_dim: int = 32,
    ) -> None:
        size, patch = _pair(image_size), _pair(patch_size)
        _check(size, patch, embed_dim, num_heads)
        shape = {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads, "codes": codes, "code_dim": code_dim}
        super().__init__({"image_size": list(size), "patch_size": list(patch), **shape})
        self.view, self.grid, self.vocabulary = (
            CenterCropResize(size),
            (size[0] // patch[0], size[1] // patch[1]),
            codes,
        )
        self.encoder = vit(size, patch, 3, embed_dim, depth, num_heads)
        self.encode_task_layer = task_layer(embed_dim, code_dim)
        self.register_buffer("codes", normalize(torch.randn(codes, code_dim)))

    @classmethod
    def from_beit2(cls, weights: Mapping[str, Tensor], *, image_size: Pair, patch_size: Pair, heads: int) -> Self:
        """Load a published state dict, frozen.

        Encoder, ``encode_task_layer`` and codes are loaded; other tensors (decoder, usage, teacher, loss) are ignored.

        Args:
            weights: state dict with the published names.
            image_size: pixels, or (height, width); published: 224.
            patch_size: pixels, or (height, width); published: 16.
            heads: attention heads, which the shapes do not determine; published: 12.

        Raises:
            MapetError: missing or wrongly shaped tensors, or unknown ones in the encoder.
        """
        ours = {name: tensor for name, tensor in join_qkv_bias(weights, WHAT).items() if name.startswith(USED)}
        network = cls(
            image_size=image_size,
            patch_size=patch_size,
            embed_dim=extent(weights, "encoder.fc_norm.weight", WHAT),
            depth=count(weights, "encoder.blocks."),
            num_heads=heads,
            codes=extent(weights, CODES, WHAT),
            code_dim=extent(weights, CODES, WHAT, axis=1),
        )
        fill(network, {**ours, "codes": normalize(weights[CODES])}, WHAT)
        return network.requires_grad_(False).eval()

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to features (B, L, C) before normalisation, patches in row-major order.

        Pixels are mapped by 2x − 1. (The published code scales by 255 / 127.5, and by 255 only if the maximum of the
        batch is at most 1, so that an image's tokens may depend on the others of the batch; here they do not.)
        """
        return self.encode_task_layer(patches(self.encoder, 2 * images - 1))

    def unit(self, images: Tensor) -> Tensor:
        """``features`` of unit length, float32 also under mixed precision."""
        return normalize(self.features(images).float(), dim=-1)

    def nearest(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors (B, L, C) to their nearest codes (B, L) int64 and squared distances (B, L) float32."""
        with torch.autocast(unit.device.type, enabled=False):
            tokens, squared = assign(unit.flatten(0, 1), self.codes)
        return tokens.view(unit.shape[:2]), squared.view(unit.shape[:2])

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) float32 in [0, 1] at ``view.size`` to tokens (B, L) int64, patches in row-major order."""
        return self.measure(images)[0]

    @torch.no_grad()
    def measure(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, L) as ``encode``, squared distances (B, L) to their codes, and the unit vectors (B, L, C)."""
        unit = self.unit(in_view(images, self))
        return *self.nearest(unit), unit


def vit(size: Pair, patch: Pair, channels: int, embed_dim: int, depth: int, num_heads: int) -> VisionTransformer:
    """timm's ViT with CLS token, learned position embedding and ``fc_norm``, without layer scale."""
    return VisionTransformer(
        _pair(size),
        _pair(patch),
        channels,
        num_classes=0,
        global_pool="avg",
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )


def patches(model: VisionTransformer, images: Tensor) -> Tensor:
    """(B, channels, H, W) → (B, L, D): patch features after ``fc_norm``, without CLS."""
    return model.fc_norm(model.forward_features(images)[:, 1:])


def task_layer(width: int, out: int) -> nn.Sequential:
    """Linear, tanh, linear: (…, width) → (…, out)."""
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, out))


def _pair(size: Pair) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _check(size: tuple[int, int], patch: tuple[int, int], width: int, heads: int) -> None:
    if min(patch) < 1 or size[0] % patch[0] or size[1] % patch[1] or min(size) < 1:
        raise MapetError(f"The patch size {patch} must divide the image size {size}.")
    if heads < 1 or width % heads:
        raise MapetError(f"The number of heads must divide the width {width}, got {heads}.")
