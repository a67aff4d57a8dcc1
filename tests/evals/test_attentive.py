"""The attentive probe against CAE's block written out, on a class that one patch alone reveals, and under changes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mapet.evals.attentive import PROTOCOL, AttentiveProbe, attentive, train_probe
from mapet.evals.linear import linear
from mapet.utils.errors import MapetError


def revealed(count, seed, classes=4, length=4, width=16):
    """Every image holds each class's mark equally often; the flag beside one of the marks tells the class."""
    chance = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    mark = torch.rand(count, length, generator=chance).argsort(dim=1) % classes
    told = (mark == labels[:, None]).long().argmax(dim=1)
    flag = classes + (torch.arange(length) == told[:, None]).long()
    patches = 3.0 * (F.one_hot(mark, width) + F.one_hot(flag, width))
    return (patches + 0.3 * torch.randn(count, length, width, generator=chance)).half(), labels


def meaningless(count, seed):
    chance = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 8, generator=chance), torch.arange(count) % 4


def pooled(data):
    return data[0].float().mean(dim=1), data[1]


def test_a_class_that_only_one_patch_reveals():
    train, test = revealed(400, seed=1), revealed(400, seed=2)
    assert attentive(train, test, classes=4, batch=200)["top1"].value > 0.98
    blind = linear(pooled(train), pooled(test), classes=4)["top1"]
    assert blind.low < 1 / 4 < blind.high


def test_labels_without_meaning_give_chance():
    score = attentive(meaningless(1000, seed=3), meaningless(1000, seed=4), classes=4)["top1"]
    assert score.low < 1 / 4 < score.high


class Block(nn.Module):
    """CAE's cross-attention block with all its shifts, every patch projected, from a probe's weights."""

    def __init__(self, probe):
        super().__init__()
        heads, channels, width = probe.k_weight.shape
        self.heads, self.channels, self.probe = heads, channels, probe
        torch.manual_seed(5)
        self.norm_k, self.norm_v = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.v_shift, self.proj_shift = torch.randn(width), torch.randn(width)
        for norm, weight in ((self.norm_k, probe.norm_k), (self.norm_v, probe.norm_v)):
            norm.weight = weight
            nn.init.normal_(norm.bias)

    def forward(self, patches):
        p = self.probe
        query = F.linear(p.norm_q(p.query_token.expand(len(patches), 1, -1)), p.q_weight, p.q_bias)
        key = F.linear(self.norm_k(patches), p.k_weight.flatten(0, 1))
        value = F.linear(self.norm_v(patches), p.v_weight.flatten(0, 1), self.v_shift)
        split = (part.unflatten(2, (self.heads, self.channels)).transpose(1, 2) for part in (query, key, value))
        read = F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(1)
        return F.linear(p.norm(F.linear(read, p.proj, self.proj_shift)), p.head_weight, p.head_bias)


@pytest.mark.parametrize("heads", [1, 4])
def test_nothing_is_lost_against_the_block_written_out(heads):
    probe = AttentiveProbe(16, heads, classes=5, seed=0)
    torch.manual_seed(1)
    for parameter in probe.parameters():  # far from the start, where the query is 0
        nn.init.normal_(parameter, std=0.3)
    patches, labels = torch.randn(30, 7, 16), torch.arange(30) % 5
    ours, theirs = probe(patches), Block(probe)(patches)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    parameters = dict(probe.named_parameters())
    gradients = [torch.autograd.grad(F.cross_entropy(s, labels), parameters.values()) for s in (ours, theirs)]
    for name, one, other in zip(parameters, *gradients, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")
        assert one.abs().max() > 1e-4, name


def test_neither_the_sequence_of_the_patches_nor_their_scale_matters():
    probe = AttentiveProbe(16, 2, classes=5, seed=0).eval()
    patches = torch.randn(6, 9, 16, generator=torch.Generator().manual_seed(0))
    ema_update = (50 * patches + 7)[:, torch.randperm(9, generator=torch.Generator().manual_seed(1))]
    torch.testing.assert_close(probe(ema_update), probe(patches), atol=1e-5, rtol=1e-4)


def test_the_same_again_whatever_the_global_chance():
    train, test = revealed(60, seed=1), revealed(40, seed=2)
    first = attentive(train, test, classes=4)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    with torch.no_grad():
        assert attentive(train, test, classes=4) == first
    assert torch.equal(torch.get_rng_state(), state)
    starts = [train_probe(train, 4, seed, 60, torch.device("cpu")).proj for seed in (0, 1)]
    assert not torch.equal(*starts)


def test_head_counts_divide_any_width():
    for width, heads in ((256, 4), (192, 3), (100, 1), (130, 2), (200, 2), (8, 1)):
        train = torch.randn(4, 2, width), torch.arange(4) % 2
        probe = train_probe(train, 2, 0, 4, torch.device("cpu"))
        assert probe.k_weight.shape == (heads, width // heads, width)


def test_the_protocol_is_named():
    assert "CAE" in PROTOCOL
    assert "90 epochs" in PROTOCOL


def test_a_batch_needs_two():
    with pytest.raises(MapetError, match="batch_size must be >= 2"):
        attentive(revealed(8, 1), revealed(8, 2), classes=4, batch=1)
