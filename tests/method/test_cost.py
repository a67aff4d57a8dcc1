"""Multiply-accumulates against torch's own count of what is really computed."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mapet.method.cost import macs
from mapet.method.encoder import Encoder, vit
from mapet.method.pattern import mapet, mim, pet
from mapet.method.predict import TokenPrediction
from method_oracle import NAMED, PATTERNS


def counted(run, images):
    """Half of the floating-point operations that torch sees for a batch of ``images``, per image."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        run(images)
    return counter.get_total_flops() / 2 / len(images)


def in_sequence(encoder, batch):
    return torch.arange(1 + encoder.length).expand(batch, -1)


@pytest.mark.parametrize("name", PATTERNS)
def test_tiny_sizes(name):
    encoder = Encoder((12, 16), 4, in_chans=2, embed_dim=24, depth=3, num_heads=3, mlp_ratio=2.5)
    model = TokenPrediction(encoder, PATTERNS[name], 11)
    found = counted(lambda images: model.logits(images, in_sequence(encoder, 2)), torch.randn(2, 2, 12, 16))
    assert found == macs(encoder, PATTERNS[name], 11)


@pytest.mark.parametrize("name", NAMED)
def test_tiny_at_224_pixels(name):
    encoder, pattern = vit("vit_tiny"), NAMED[name](196, 147)
    model = TokenPrediction(encoder, pattern, 8192)
    found = counted(lambda images: model.logits(images, in_sequence(encoder, 1)), torch.randn(1, 3, 224, 224))
    assert found == macs(encoder, pattern, 8192)


@pytest.mark.parametrize("depth", [1, 4])
def test_plain_encoder(depth):
    encoder = Encoder(32, 8, embed_dim=32, depth=depth, num_heads=4)
    assert counted(encoder, torch.randn(3, 3, 32, 32)) == macs(encoder)


def test_base_at_224_pixels_costs_what_is_told():
    with torch.device("meta"):
        encoder = vit("vit_base")
    giga = {pattern.__name__: macs(encoder, pattern(196, 147), 8192) / 1e9 for pattern in (mapet, pet, mim)}
    assert giga == pytest.approx({"mapet": 41.4, "pet": 28.1, "mim": 18.2}, rel=0.005)
    assert macs(encoder) / 1e9 == pytest.approx(17.6, rel=0.005)  # the usual figure of ViT-B/16
