"""A second, plain formulation of the published network, in float64 and driven by the names of its tensors."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, softmax

from mapet.tokenizers.tokenizer import load_tokenizer
from mapet.tokenizers.vqgan import VQGAN
from mapet.utils.errors import MapetError
from mapet.utils.view import CenterCropResize

OUTPUT = 2e-5  # float32 on a CPU, of features up to about 5
CASES = {  # widths in units of 32 channels, blocks, levels with attention, gumbel, side
    "f16": ((1, 1, 2, 2, 4), 2, (4,), False, 48),
    "f8 gumbel": ((1, 1, 2, 4), 2, (3,), True, 40),
    "attention in two levels": ((1, 2), 1, (0, 1), False, 12),
    "no attention but the middle's": ((2, 1, 4), 3, (), True, 20),
    "one level": ((1,), 1, (), False, 6),
}


class Published(dict[str, Tensor]):
    """Random weights under the published names, with parts that tokens do not need."""

    def __init__(self, case: str, *, latent: int = 24, code_width: int = 16, codes: int = 160) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(len(case))
        units, blocks, attention, gumbel, _ = CASES[case]
        width = self.levels([32 * unit for unit in units], blocks, attention)
        self.residual("encoder.mid.block_1", width, width)
        self.attend("encoder.mid.attn_1", width)
        self.residual("encoder.mid.block_2", width, width)
        self.norm("encoder.norm_out", width)
        self.conv("encoder.conv_out", width, latent, 3)
        self.conv("quant_conv", latent, code_width)
        if gumbel:
            self.conv("quantize.proj", code_width, codes)
        self[f"quantize.embed{'' if gumbel else 'ding'}.weight"] = 2 * self.normal(codes, code_width)
        self.conv("post_quant_conv", code_width, latent)
        self.conv("decoder.conv_in", latent, width, 3)
        self.conv("loss.discriminator.main.0", 3, 4, 3)

    def levels(self, widths: list[int], blocks: int, attention: tuple[int, ...]) -> int:
        self.conv("encoder.conv_in", 3, 32, 3)
        before = 32
        for level, width in enumerate(widths):
            for block in range(blocks):
                self.residual(f"encoder.down.{level}.block.{block}", before, width)
                before = width
                if level in attention:
                    self.attend(f"encoder.down.{level}.attn.{block}", width)
            if level + 1 < len(widths):
                self.conv(f"encoder.down.{level}.downsample.conv", width, width, 3)
        return before

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def conv(self, name: str, before: int, width: int, kernel: int = 1) -> None:
        self[f"{name}.weight"] = self.normal(width, before, kernel, kernel) * 1.5 / kernel / before**0.5
        self[f"{name}.bias"] = 0.2 * self.normal(width)

    def norm(self, name: str, width: int) -> None:
        self[f"{name}.weight"], self[f"{name}.bias"] = 1 + 0.3 * self.normal(width), 0.2 * self.normal(width)

    def residual(self, name: str, before: int, width: int) -> None:
        self.norm(f"{name}.norm1", before)
        self.conv(f"{name}.conv1", before, width, 3)
        self.norm(f"{name}.norm2", width)
        self.conv(f"{name}.conv2", width, width, 3)
        if before != width:
            self.conv(f"{name}.nin_shortcut", before, width)

    def attend(self, name: str, width: int) -> None:
        self.norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            self.conv(f"{name}.{part}", width, width)


class Oracle:
    """The published encoder and quantiser as functions of a state dict, all in float64."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = {name: tensor.double() for name, tensor in weights.items()}

    def conv(self, name: str, x: Tensor, **options: int) -> Tensor:
        return conv2d(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], **options)

    def norm(self, name: str, x: Tensor) -> Tensor:
        groups = x.unflatten(1, (32, -1))
        axes = (2, 3, 4)
        mean, variance = groups.mean(axes, keepdim=True), groups.var(axes, correction=0, keepdim=True)
        x = ((groups - mean) / (variance + 1e-6).sqrt()).flatten(1, 2)
        return x * self.weights[f"{name}.weight"][:, None, None] + self.weights[f"{name}.bias"][:, None, None]

    def swish(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    def residual(self, name: str, x: Tensor) -> Tensor:
        y = self.conv(f"{name}.conv1", self.swish(self.norm(f"{name}.norm1", x)), padding=1)
        y = self.conv(f"{name}.conv2", self.swish(self.norm(f"{name}.norm2", y)), padding=1)
        shortcut = f"{name}.nin_shortcut"
        return y + (self.conv(shortcut, x) if f"{shortcut}.weight" in self.weights else x)

    def attend(self, name: str, x: Tensor) -> Tensor:
        q, k, v = (self.conv(f"{name}.{part}", self.norm(f"{name}.norm", x)) for part in "qkv")
        scores = torch.einsum("bchw,bcij->bhwij", q, k) / math.sqrt(x.shape[1])
        weights = softmax(scores.flatten(3), dim=3).view_as(scores)
        return x + self.conv(f"{name}.proj_out", torch.einsum("bhwij,bcij->bchw", weights, v))

    def halve(self, name: str, x: Tensor) -> Tensor:
        """Outputs at even places, each from its own place and the two that follow, zero beyond the border."""
        batch, width, height, _ = x.shape
        padded = x.new_zeros(batch, width, height + 1, height + 1)
        padded[:, :, :height, :height] = x
        return self.conv(name, padded)[:, :, ::2, ::2]

    def features(self, images: Tensor) -> Tensor:
        x = self.conv("encoder.conv_in", images.double() * 2 - 1, padding=1)
        level = 0
        while f"encoder.down.{level}.block.0.conv1.weight" in self.weights:
            name, block = f"encoder.down.{level}", 0
            while f"{name}.block.{block}.conv1.weight" in self.weights:
                x = self.residual(f"{name}.block.{block}", x)
                if f"{name}.attn.{block}.q.weight" in self.weights:
                    x = self.attend(f"{name}.attn.{block}", x)
                block += 1
            if f"{name}.downsample.conv.weight" in self.weights:
                x = self.halve(f"{name}.downsample.conv", x)
            level += 1
        x = self.attend("encoder.mid.attn_1", self.residual("encoder.mid.block_1", x))
        x = self.residual("encoder.mid.block_2", x)
        x = self.conv("encoder.conv_out", self.swish(self.norm("encoder.norm_out", x)), padding=1)
        return self.conv("quant_conv", x)

    def scores(self, images: Tensor) -> Tensor:
        """(B, codes, L): the code of a place is the one with the largest."""
        x = self.features(images)
        if "quantize.proj.weight" in self.weights:
            return self.conv("quantize.proj", x).flatten(2)
        codes = self.weights["quantize.embedding.weight"]
        return -(x.flatten(2)[:, None] - codes[None, :, :, None]).norm(dim=2)


def images_of(case: str) -> Tensor:
    side = CASES[case][-1]
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("case", CASES)
def test_features_and_codes(case: str) -> None:
    weights, images = Published(case), images_of(case)
    vqgan, oracle = VQGAN.from_taming(weights, image_size=images.shape[2]), Oracle(weights)
    expected = oracle.features(images).flatten(2).mT
    torch.testing.assert_close(vqgan.features(images).double(), expected, atol=OUTPUT, rtol=0)
    scores = oracle.scores(images)
    first, second = scores.topk(2, dim=1).values.unbind(1)
    assert (first - second).min() > 10 * OUTPUT, "a near tie proves nothing"
    codes = vqgan.encode(images)
    assert codes.dtype == torch.int64
    assert torch.equal(codes, scores.argmax(dim=1))
    assert len(codes.unique()) > 5
    tokens, rank, vectors = vqgan.measure(images)
    assert torch.equal(tokens, codes)
    best = scores.amax(dim=1)
    if CASES[case][3]:
        torch.testing.assert_close(rank.double(), -best, atol=10 * OUTPUT, rtol=1e-4)
        assert vectors is None
    else:
        torch.testing.assert_close(rank.double(), best.square(), atol=10 * OUTPUT, rtol=1e-4)
        assert vectors is not None
        assert torch.equal(vectors, vqgan.features(images))


@pytest.mark.parametrize("case", CASES)
def test_sizes_are_read_off_the_shapes(case: str) -> None:
    units, blocks, attention, gumbel, side = CASES[case]
    vqgan = VQGAN.from_taming(Published(case), image_size=side)
    assert vqgan.config == {
        "image_size": side,
        "channels": 32,
        "widths": [32 * unit for unit in units],
        "blocks": blocks,
        "attention": list(attention),
        "latent": 24,
        "code_width": 16,
        "codes": 160,
        "gumbel": gumbel,
    }
    rows = side // 2 ** (len(units) - 1)
    assert (vqgan.grid, vqgan.vocabulary, vqgan.view) == ((rows, rows), 160, CenterCropResize((side, side), "lanczos"))
    assert not any(parameter.requires_grad for parameter in vqgan.parameters())


@pytest.mark.parametrize("case", ["f16", "f8 gumbel"])
def test_a_folder_keeps_it(case: str, tmp_path) -> None:
    images = images_of(case)
    vqgan = VQGAN.from_taming(Published(case), image_size=images.shape[2])
    vqgan.save(tmp_path / "vqgan")
    again = load_tokenizer(tmp_path / "vqgan")
    assert (again.hash, again.view, again.grid) == (vqgan.hash, vqgan.view, vqgan.grid)
    assert torch.equal(again.encode(images), vqgan.encode(images))
    assert all(name.startswith(("encoder.", "quant")) for name in vqgan.state_dict())


F16 = {"widths": (128, 128, 256, 256, 512), "attention": (4,)}
F8 = {"widths": (128, 128, 256, 512), "attention": (3,), "codes": 8192, "gumbel": True}


@pytest.mark.parametrize(
    ("settings", "size", "grid", "parameters"),
    [(F16, 224, 14, 29_298_176), ({}, 256, 16, 29_298_176), (F8, 112, 14, 26_345_728)],
)
def test_the_published_sizes(settings, size, grid, parameters) -> None:
    """The numbers of parameters are those of the published encoders."""
    with torch.device("meta"):
        vqgan = VQGAN(image_size=size, **settings)
    assert vqgan.grid == (grid, grid)
    assert sum(parameter.numel() for parameter in vqgan.encoder.parameters()) == parameters
    assert vqgan.quant_conv.weight.shape == (256, 256, 1, 1)


def broken(change: str) -> dict[str, Tensor]:
    weights = Published("f8 gumbel")
    if change in weights:
        del weights[change]
    elif change == "a norm of 48":
        weights["encoder.conv_in.weight"] = torch.zeros(48, 3, 3, 3)
    elif change == "a block too many":
        weights["encoder.down.1.block.2.conv1.weight"] = torch.zeros(32, 32, 3, 3)
    elif change == "grey images":
        weights["encoder.conv_in.weight"] = torch.zeros(32, 1, 3, 3)
    elif change == "a vector":
        weights["quant_conv.weight"] = torch.zeros(24)
    return weights


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("encoder.conv_in.weight", r'lack "encoder\.conv_in\.weight"'),
        ("encoder.down.0.downsample.conv.bias", r'lack "encoder\.down\.0\.downsample\.conv\.bias"'),
        ("encoder.down.3.attn.1.k.weight", r'lack "encoder\.down\.3\.attn\.1\.k\.weight"'),
        ("quantize.proj.weight", r'lack "quantize\.embedding\.weight"'),
        ("quantize.proj.bias", r'lack "quantize\.proj\.bias"'),
        ("a norm of 48", "multiples of 32"),
        ("a block too many", r'"encoder\.down\.1\.block\.2.*is unknown'),
        ("grey images", r"\(32, 1, 3, 3\), not \(32, 3, 3, 3\)"),
        ("a vector", r'"quant_conv\.weight" is \(24,\)'),
    ],
)
def test_other_weights_are_refused(change: str, said: str) -> None:
    with pytest.raises(MapetError, match=said):
        VQGAN.from_taming(broken(change), image_size=40)


def test_sizes_and_pictures_that_do_not_fit() -> None:
    with pytest.raises(MapetError, match="multiple of 16, got 50: use 48"):
        VQGAN.from_taming(Published("f16"), image_size=50)
    vqgan = VQGAN.from_taming(Published("f16"), image_size=48)
    with pytest.raises(MapetError, match=r"\(B, 3, 48, 48\)"):
        vqgan.encode(torch.zeros(1, 3, 64, 64))
