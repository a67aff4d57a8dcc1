"""Multiply-accumulates against torch's count of what is computed."""

from dataclasses import FrozenInstanceError

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mapet.method.cae import CAE
from mapet.method.cls_aggregation import ClassAggregation
from mapet.method.cost import Counted, Work, macs, work
from mapet.method.encoder import SIZES, Encoder
from mapet.method.mae import DECODERS, MAE
from mapet.method.pattern import mapet, mim, pet
from mapet.method.predict import TokenPrediction
from mapet.utils import linear
from method_oracle import NAMED, PATTERNS, drawn


@pytest.fixture(autouse=True)
def by_torchs_product(monkeypatch):
    """torch counts no operations of oneDNN's product."""
    monkeypatch.setattr(linear, "SLOW_MKL", False)


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
    encoder, pattern = Encoder(**SIZES["vit_tiny"]), NAMED[name](196, 147)
    model = TokenPrediction(encoder, pattern, 8192)
    found = counted(lambda images: model.logits(images, in_sequence(encoder, 1)), torch.randn(1, 3, 224, 224))
    assert found == macs(encoder, pattern, 8192)


@pytest.mark.parametrize("depth", [1, 4])
def test_plain_encoder(depth):
    encoder = Encoder(32, 8, embed_dim=32, depth=depth, num_heads=4)
    assert counted(encoder, torch.randn(3, 3, 32, 32)) == macs(encoder)


def test_cost_of_base_at_224_pixels():
    with torch.device("meta"):
        encoder = Encoder(**SIZES["vit_base"])
    giga = {pattern.__name__: macs(encoder, pattern(196, 147), 8192) / 1e9 for pattern in (mapet, pet, mim)}
    assert giga == pytest.approx({"mapet": 41.4, "pet": 28.1, "mim": 18.2}, rel=0.005)
    assert macs(encoder) / 1e9 == pytest.approx(17.6, rel=0.005)  # the usual figure of ViT-B/16


SHAPE = {"img_size": 24, "patch_size": 4, "in_chans": 2, "embed_dim": 24, "depth": 3, "num_heads": 3, "mlp_ratio": 2.5}
DECODER = {"decoder_embed_dim": 16, "decoder_depth": 2, "decoder_num_heads": 2}
OBJECTIVES = {
    **{f"{name}, plain": lambda e, p=p: TokenPrediction(e, p(36, 27), 11) for name, p in NAMED.items()},
    **{f"{name}, cls": lambda e, p=p: ClassAggregation(e, p(36, 27), 11, layer=1) for name, p in NAMED.items()},
    "mae": lambda e: MAE(e, context=10, **DECODER),
    "mae, one block": lambda e: MAE(e, context=10, **{**DECODER, "decoder_depth": 1}),
    "cae": lambda e: CAE(e, context=19, vocabulary=11),
    "cae, other width": lambda e: CAE(e, context=10, vocabulary=11, decoder_embed_dim=16, decoder_num_heads=2),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_cost_of_every_objective(name):
    """Forward exactly; a training step except the patch embedding, as pixels need no gradient."""
    model, frozen = (OBJECTIVES[name](Encoder(**SHAPE)) for _ in range(2))
    images, tokens, order = drawn(model.encoder, 2)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        frozen.requires_grad_(False)(images, tokens, order)
    assert counter.get_total_flops() / 2 / 2 == model.macs()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images, tokens, order)["loss"].backward()
    step = counter.get_total_flops() / 2 / 2
    assert step == model.macs(training=True) - model.encoder.length * model.encoder.patch_embed.proj.weight.numel()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_states_are_what_blocks_return_and_scores_what_is_compared(name):
    """An image has 36 patches of 32 values, of which the context is not predicted; of tokens there are 11."""
    model, states = OBJECTIVES[name](Encoder(**SHAPE)), []
    for path, blocks in model.named_modules():
        for block in blocks if path.endswith("blocks") else ():
            block.register_forward_hook(lambda _, given, rows: states.append(rows[0].numel()))
    model(*drawn(model.encoder, 2))
    predicted = {"cae": 18 * 11, "mae": 27 * 32}.get(name.split(",")[0], 27 * 11)
    predicted = 27 * 11 if name == "cae, other width" else predicted * (2 if name.endswith("cls") else 1)
    work = model.work()
    assert (work.states, work.scores) == (sum(states), predicted)
    trained = model.work(training=True)
    assert trained.scores == 3 * work.scores
    assert 2 * work.states < trained.states <= 3 * work.states  # the teacher of CAE has no backward pass


def test_cost_of_competitors_at_224_pixels():
    with torch.device("meta"):
        encoder = Encoder(**SIZES["vit_base"])
        mae = MAE(encoder, context=50, **DECODERS["vit_base"])
        cae = CAE(encoder, context=99, vocabulary=8192)
    assert mae.macs() / 1e9 == pytest.approx(9.8, rel=0.05)
    teacher = cae.macs(training=True) - 3 * cae.macs()
    assert teacher < 0
    assert cae.macs() / 1e9 == pytest.approx(15.5 + 8.7, rel=0.05)
    assert -teacher / 2 / 1e9 == pytest.approx(8.7, rel=0.05)


def test_costs_add_up_and_an_objective_counts_its_own():
    cost = Work(2, 3, 5, 7)
    assert Work() + cost == cost + Work() == cost == cost * 1
    assert cost + cost == cost * 2 == Work(4, 6, 10, 14)
    assert cost.macs == 5
    with pytest.raises(NotImplementedError):
        Counted().macs()


def test_without_a_vocabulary_no_head_is_counted():
    encoder = Encoder(32, 8, embed_dim=32, depth=2, num_heads=4)
    assert work(encoder) == work(encoder, vocabulary=0)
    assert work(encoder).scores == 0


def test_costs_cannot_be_changed_and_count_as_keys():
    assert {Work(linear=3): "cost"}[Work(linear=3)] == "cost"
    with pytest.raises(FrozenInstanceError):
        Work(linear=3).linear = 4
