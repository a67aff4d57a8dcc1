"""The encoder of DALL-E's discrete VAE, the tokenizer of BEiT and CAE.

"Zero-Shot Text-to-Image Generation" (arXiv 2102.12092), appendix A.2; weights: encoder of openai/DALL-E.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d

from mapet.tokenizers.convolutional import Convolutional
from mapet.tokenizers.tokenizer import in_view
from mapet.utils.weights import count, extent, fill

GROUPS = (1, 2, 4, 8)  # widths, in units of n_hid; between two groups the image is halved
STRIDE = 8
WHAT = "OpenAI's dVAE encoder"


class DalleEncoder(Convolutional):
    """The dVAE's most probable code per 8 × 8 pixels; parameters have the published names.

    Args:
        image_size: side of the images in pixels, a multiple of 8; BEiT and CAE use 112, half of the student's 224.
        n_hid: width of the first group; published: 256.
        n_blk: residual blocks in each of the four groups; published: 2.
        vocabulary: number of codes; published: 8192.

    Raises:
        MapetError: an image size that is not a multiple of 8.
    """

    kind: ClassVar[str] = "dalle"

    def __init__(self, *, image_size: int = 112, n_hid: int = 256, n_blk: int = 2, vocabulary: int = 8192) -> None:
        config = {"image_size": image_size, "n_hid": n_hid, "n_blk": n_blk, "vocabulary": vocabulary}
        super().__init__(config, STRIDE)
        self.vocabulary = vocabulary
        widths = [n_hid * unit for unit in (1, *GROUPS)]
        gain = (len(GROUPS) * n_blk) ** -2
        self.blocks = nn.ModuleDict({"input": Conv(3, n_hid, 7)})
        for group in range(len(GROUPS)):
            before, width = widths[group : group + 2]
            blocks = [(f"block_{i + 1}", Block(width if i else before, width, gain)) for i in range(n_blk)]
            self.blocks[f"group_{group + 1}"] = nn.Sequential(OrderedDict(blocks))
        self.blocks["output"] = nn.Sequential(OrderedDict(conv=Conv(widths[-1], vocabulary, 1)))

    @classmethod
    def from_openai(cls, weights: Mapping[str, Tensor], *, image_size: int = 112) -> Self:
        """Load the published encoder, frozen.

        Args:
            weights: its state dict (``blocks.input.w``, ``blocks.group_1.block_1.res_path.conv_1.w`` …), whose shapes
                give all sizes.
            image_size: side of the images in pixels.

        Raises:
            MapetError: other weights, or an image size that is not a multiple of 8.
        """
        network = cls(
            image_size=image_size,
            n_hid=extent(weights, "blocks.input.w", WHAT),
            n_blk=max(1, count(weights, "blocks.group_1.")),
            vocabulary=extent(weights, "blocks.output.conv.w", WHAT),
        )
        fill(network, weights, WHAT)
        return network.requires_grad_(False).eval()

    def logits(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) float32 in [0, 1] at ``view.size`` to logits (B, vocabulary, *grid)."""
        x = self.blocks["input"](0.8 * in_view(images, self) + 0.1)
        for group in range(len(GROUPS)):
            x = self.blocks[f"group_{group + 1}"](max_pool2d(x, 2) if group else x)
        return self.blocks["output"](x.relu())

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) float32 in [0, 1] at ``view.size`` to tokens (B, L) int64, patches in row-major order."""
        return self.measure(images)[0]

    @torch.no_grad()
    def measure(self, images: Tensor) -> tuple[Tensor, Tensor, None]:
        """Tokens (B, L) as ``encode``, and their negative logits (B, L)."""
        largest, tokens = self.logits(images).max(dim=1)
        return tokens.flatten(1), -largest.flatten(1), None


class Conv(nn.Module):
    """A convolution that keeps the size; weight ``w`` and bias ``b`` are initialised with zeros."""

    def __init__(self, before: int, width: int, kernel: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(width, before, kernel, kernel))
        self.b = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) to (B, width, H, W)."""
        return conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)


class Block(nn.Module):
    """A residual block: x + ``gain`` · four convolutions, each after a ReLU."""

    def __init__(self, before: int, width: int, gain: float) -> None:
        super().__init__()
        hidden, self.gain = width // 4, gain
        sizes = [(before, hidden, 3), (hidden, hidden, 3), (hidden, hidden, 3), (hidden, width, 1)]
        self.res_path = nn.ModuleDict({f"conv_{i + 1}": Conv(*size) for i, size in enumerate(sizes)})
        self.id_path = nn.Identity() if before == width else Conv(before, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) to (B, width, H, W)."""
        y = x
        for conv in self.res_path.values():
            y = conv(y.relu())
        return self.id_path(x) + self.gain * y
