"""VQGAN as a tokenizer: encoder and quantiser of checkpoints of taming-transformers.

"Taming Transformers for High-Resolution Image Synthesis" (arXiv 2012.09841).
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention, silu

from mapet.tokenizers.convolutional import Convolutional
from mapet.tokenizers.kmeans import assign
from mapet.tokenizers.tokenizer import in_view
from mapet.utils.errors import MapetError
from mapet.utils.weights import count, extent, fill

NORM_GROUPS = 32
NEEDED = ("encoder.", "quant_conv.", "quantize.proj.", "quantize.embedding.weight")
WHAT = "a VQGAN of taming-transformers"


class VQGAN(Convolutional):
    """Images to the codes of a VQGAN. Parameters have the published names.

    The code is the nearest embedding, or the one with the largest logit for a model trained with Gumbel-softmax; for
    the latter, the published code samples with noise even in evaluation, and this is its most probable sample.

    Args:
        image_size: side of the images in pixels, a multiple of 2 to the number of halvings.
        channels: width of the first convolution.
        widths: of each level; between two levels the image is halved.
        blocks: residual blocks per level.
        attention: levels, from 0, with self-attention after each block.
        latent: width of the encoder's output.
        code_width: width of the quantised vectors.
        codes: vocabulary size.
        gumbel: use the logits of a 1 × 1 convolution instead of the nearest embedding.

    Raises:
        MapetError: an image size that is not a multiple of a token's pixels.
    """

    kind: ClassVar[str] = "vqgan"

    def __init__(
        self,
        *,
        image_size: int,
        channels: int = 128,
        widths: Sequence[int] = (128, 128, 256, 256, 512),
        blocks: int = 2,
        attention: Sequence[int] = (4,),
        latent: int = 256,
        code_width: int = 256,
        codes: int = 1024,
        gumbel: bool = False,
    ) -> None:
        encoder = {"channels": channels, "widths": [*widths], "blocks": blocks, "attention": [*attention]}
        quantiser = {"latent": latent, "code_width": code_width, "codes": codes, "gumbel": gumbel}
        super().__init__({"image_size": image_size, **encoder, **quantiser}, 2 ** (len(widths) - 1))
        self.vocabulary = codes
        self.encoder = Encoder(channels, widths, blocks, attention, latent)
        self.quant_conv = nn.Conv2d(latent, code_width, 1)
        self.quantize = LargestLogit(code_width, codes) if gumbel else NearestEmbedding(code_width, codes)

    @classmethod
    def from_taming(cls, weights: Mapping[str, Tensor], *, image_size: int) -> Self:
        """Load the published encoder and quantiser, frozen.

        Args:
            weights: a checkpoint's state dict, whose shapes give all sizes; decoder, loss and other tensors that tokens
                do not need are ignored.
            image_size: side of the images in pixels.

        Raises:
            MapetError: other weights, or an image size that is not a multiple of a token's pixels.
        """
        network = cls(image_size=image_size, **_sizes(weights))
        fill(network, {name: value for name, value in weights.items() if name.startswith(NEEDED)}, WHAT)
        return network.requires_grad_(False).eval()

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) float32 in [0, 1] at ``view.size`` to vectors before quantisation, (B, L, code_width)."""
        return self.quant_conv(self.encoder(2 * in_view(images, self) - 1)).flatten(2).mT

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) float32 in [0, 1] at ``view.size`` to tokens (B, L) int64, patches in row-major order."""
        return self.measure(images)[0]

    @torch.no_grad()
    def measure(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens (B, L) as ``encode``; squared distances (B, L) and vectors, or negative logits (B, L) and None."""
        features = self.features(images)
        return *self.quantize(features), features if isinstance(self.quantize, NearestEmbedding) else None


class NearestEmbedding(nn.Module):
    """Quantises a vector to its nearest embedding."""

    def __init__(self, width: int, codes: int) -> None:
        super().__init__()
        self.embedding = nn.ParameterDict({"weight": torch.zeros(codes, width)})

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, width) to codes (B, L) int64 and squared distances (B, L)."""
        tokens, squared = assign(features.flatten(0, 1), self.embedding["weight"])
        return tokens.view(features.shape[:2]), squared.view(features.shape[:2])


class LargestLogit(nn.Module):
    """Quantises a vector to the code with its largest logit."""

    def __init__(self, width: int, codes: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(width, codes, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, width) to codes (B, L) int64 and their negative logits (B, L)."""
        largest, tokens = self.proj(features.mT[..., None])[..., 0].max(dim=1)
        return tokens, -largest


class Encoder(nn.Module):
    """Residual blocks at decreasing resolution, with attention at the lowest: (B, 3, H, W) → (B, latent, h, w)."""

    def __init__(self, channels: int, widths: Sequence[int], blocks: int, attention: Sequence[int], latent: int):
        super().__init__()
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)
        levels = zip((channels, *widths), widths, range(len(widths)), strict=False)
        self.down = nn.Sequential(
            *(Level(before, width, blocks, n in attention, n + 1 < len(widths)) for before, width, n in levels)
        )
        last = widths[-1]
        middle = {"block_1": Residual(last, last), "attn_1": Attention(last), "block_2": Residual(last, last)}
        self.mid = nn.Sequential(OrderedDict(middle))
        self.norm_out = _norm(last)
        self.conv_out = nn.Conv2d(last, latent, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to features (B, latent, h, w)."""
        return self.conv_out(silu(self.norm_out(self.mid(self.down(self.conv_in(x))))))


class Level(nn.Module):
    """The blocks of one resolution, and a downsampling after all but the last level."""

    def __init__(self, before: int, width: int, blocks: int, attentive: bool, halved: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(Residual(width if i else before, width) for i in range(blocks))
        self.attn = nn.ModuleList(Attention(width) if attentive else nn.Identity() for _ in range(blocks))
        self.downsample = Downsample(width) if halved else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) to (B, width, H / 2, W / 2), or (B, width, H, W) in the last level."""
        for block, attention in zip(self.block, self.attn, strict=True):
            x = attention(block(x))
        return self.downsample(x)


class Residual(nn.Module):
    """x + (norm, SiLU, convolution) twice."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(before), nn.Conv2d(before, width, 3, padding=1)
        self.norm2, self.conv2 = _norm(width), nn.Conv2d(width, width, 3, padding=1)
        self.nin_shortcut = nn.Identity() if before == width else nn.Conv2d(before, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) to (B, width, H, W)."""
        y = self.conv1(silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(silu(self.norm2(y)))


class Attention(nn.Module):
    """x + self-attention over all positions, with one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        y = self.norm(x)
        q, k, v = (part(y).flatten(2).mT[:, None] for part in (self.q, self.k, self.v))  # (B, 1, HW, C)
        read = scaled_dot_product_attention(q, k, v)[:, 0]
        return x + self.proj_out(read.mT.reshape(x.shape))


class Downsample(nn.Module):
    """A convolution of stride 2 with zero padding on the right and at the bottom only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H / 2, W / 2)."""
        return self.conv(pad(x, (0, 1, 0, 1)))


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, width, eps=1e-6)


def _sizes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Constructor arguments from the shapes of a checkpoint."""
    channels = extent(weights, "encoder.conv_in.weight", WHAT)
    levels = range(max(1, count(weights, "encoder.down.")))
    widths = [extent(weights, f"encoder.down.{n}.block.0.conv1.weight", WHAT) for n in levels]
    if any(width % NORM_GROUPS for width in (channels, *widths)):
        raise MapetError(f"These are not the weights of {WHAT}: widths {channels}, {widths} not all multiples of 32.")
    gumbel = "quantize.proj.weight" in weights
    quantiser = "quantize.proj.weight" if gumbel else "quantize.embedding.weight"
    return {
        "channels": channels,
        "widths": widths,
        "blocks": count(weights, "encoder.down.0.block."),
        "attention": [n for n in levels if count(weights, f"encoder.down.{n}.attn.")],
        "latent": extent(weights, "quant_conv.weight", WHAT, axis=1),
        "code_width": extent(weights, "quant_conv.weight", WHAT),
        "codes": extent(weights, quantiser, WHAT),
        "gumbel": gumbel,
    }
