"""CAE: masked pixels reach only the teacher, without gradient; results do not depend on the order's sequence."""

import copy
import math
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mapet.method.cae import CAE, DECODER, REGRESSOR, TEACHER, RegressorBlock
from mapet.method.encoder import Encoder, fork_seed
from mapet.method.order import STRATEGIES
from method_oracle import drawn, influence, shaken

PATCH = 2


def tiny(context=5, vocabulary=11, decoder_embed_dim=None, alignment_weight=2.0, **changes):
    settings = {"img_size": (6, 8), "patch_size": PATCH, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return CAE(
        Encoder(**{**settings, "init_values": 0.5, **changes}),
        context=context,
        vocabulary=vocabulary,
        regressor_depth=2,
        decoder_depth=2,
        decoder_embed_dim=decoder_embed_dim,
        alignment_weight=alignment_weight,
    )


def decoded(model, latents, order, seed=None):
    """(B, M, V) logits."""
    return model.head(model.decode(latents, order, seed))


@pytest.mark.parametrize("width", [None, 24])
@pytest.mark.parametrize("context", [2, 5, 12])
def test_masked_pixels_never_reach_encoder_regressor_or_decoder(context, width):
    model = shaken(tiny(context, decoder_embed_dim=width).double())
    images, tokens, order = drawn(model.encoder, 3)
    images.requires_grad_()
    given, masked = order[:, 1:context] - 1, order[:, context:] - 1
    latent_pred, latent_target = model.latents(images, order)
    for outputs in (latent_pred, decoded(model, latent_pred, order), model(images, tokens, order)["loss"]):
        sources = influence(outputs, images, PATCH)
        assert (sources.gather(1, masked) == 0).all()
        assert (sources.gather(1, given) > 1e-9).all()
    assert not latent_target.requires_grad


def test_teacher_sees_only_masked_patches():
    model = shaken(tiny().double())
    images, _, order = drawn(model.encoder, 1)
    _, latent_target = model.latents(images, order)
    for index in range(1, 13):
        row, column = divmod(int(order[0, index]) - 1, 4)
        other = images.clone()
        other[:, :, PATCH * row : PATCH * (row + 1), PATCH * column : PATCH * (column + 1)] += 1
        changed = (model.latents(other, order)[1] - latent_target).abs().amax(-1)[0]
        assert (changed > 1e-9).all() if index >= 5 else (changed == 0).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("context", [2, 4, 12])
def test_masks_exactly_the_requested_number(strategy, context):
    model = tiny(context, decoder_embed_dim=8)
    images, _, _ = drawn(model.encoder, 3)
    order = STRATEGIES[strategy](model.encoder.grid, 13 - context, 0, 0, torch.arange(3))
    latent_pred, latent_target = model.latents(images, order)
    assert latent_pred.shape == latent_target.shape == (3, 13 - context, 8)
    assert decoded(model, latent_pred, order).shape == (3, 13 - context, 11)


def test_sequence_inside_context_and_masked_patches_has_no_effect():
    model = shaken(tiny(decoder_embed_dim=24).double())
    images, tokens, order = drawn(model.encoder, 3)
    given, masked = torch.tensor([2, 0, 3, 1]), torch.tensor([5, 0, 7, 1, 6, 2, 4, 3])
    shuffled = torch.cat([order[:, :1], order[:, 1:5][:, given], order[:, 5:][:, masked]], dim=1)
    (latent_pred, latent_target), (pred_shuffled, target_shuffled) = (
        model.latents(images, order),
        model.latents(images, shuffled),
    )
    torch.testing.assert_close(pred_shuffled, latent_pred[:, masked], atol=1e-10, rtol=0)
    torch.testing.assert_close(target_shuffled, latent_target[:, masked], atol=1e-10, rtol=0)
    torch.testing.assert_close(
        decoded(model, pred_shuffled, shuffled), decoded(model, latent_pred, order)[:, masked], atol=1e-10, rtol=0
    )
    straight, mixed = model(images, tokens, order), model(images, tokens, shuffled)
    torch.testing.assert_close(mixed, straight, atol=1e-6, rtol=0)  # losses are float32
    assert (latent_pred[:, 0] - latent_pred[:, 1]).abs().max() > 1e-2


@pytest.mark.parametrize("width", [None, 24])
def test_equals_a_teacher_with_separate_weights(width):
    """The published form: a second, here equal, set of weights, under ``detach``."""
    model = shaken(tiny(decoder_embed_dim=width).double())
    images, tokens, order = drawn(model.encoder, 3)
    encoder, project = copy.deepcopy(model.encoder), copy.deepcopy(model.encoder_to_decoder)
    rows = encoder.embed(images) + encoder.pos_embed
    seen = torch.stack(
        [image[torch.cat([positions[:1], positions[5:]])] for image, positions in zip(rows, order, strict=True)]
    )
    teacher = project(encoder.run(seen)[:, 1:]).detach()
    latent_pred, latent_target = model.latents(images, order)
    torch.testing.assert_close(latent_target, teacher, atol=1e-10, rtol=0)
    logits = decoded(model, latent_pred, order)
    target = torch.stack([tokens[image, order[image, 5:] - 1] for image in range(3)])
    cross = -logits.log_softmax(-1).gather(-1, target[:, :, None]).mean()
    alignment = 2.0 * (latent_pred - teacher).square().mean()
    metrics = model(images, tokens, order)
    assert metrics["token_loss"].item() == pytest.approx(cross.item())
    assert metrics["alignment_loss"].item() == pytest.approx(alignment.item())
    assert metrics["loss"].item() == pytest.approx((cross + alignment).item())
    assert metrics["accuracy"].item() == pytest.approx((logits.argmax(-1) == target).double().mean().item())
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(metrics["loss"], parameters)
    torch.testing.assert_close(found, torch.autograd.grad(cross + alignment, parameters), atol=1e-6, rtol=0)


def test_micro_batches_equal_the_whole_batch():
    model = shaken(tiny(drop_path_rate=0.5)).train()
    images, tokens, order = drawn(model.encoder, 16)
    seed = torch.arange(16)
    with torch.no_grad():
        whole = model(images, tokens, order, seed)
        parts = [model(*(part[k : k + 4] for part in (images, tokens, order, seed))) for k in range(0, 16, 4)]
        dropped = {name: sum(part[name] for part in parts) / 4 for name in whole}
        torch.testing.assert_close(dropped, whole, atol=1e-5, rtol=1e-5)
        plain = model.eval()(images, tokens, order, seed)
    assert abs(plain["loss"] - whole["loss"]) > 1e-3


def test_teacher_and_decoder_draw_their_own_stochastic_depth():
    """One image with 64 seeds: the seeds that drop the same branches differ between the two."""
    model = shaken(tiny(drop_path_rate=0.5)).train()
    images, _, order = drawn(model.encoder, 1)
    images, order, seed = images.expand(64, -1, -1, -1), order.expand(64, -1), torch.arange(64)
    with torch.no_grad():
        latent_pred, latent_target = model.latents(images, order, seed)
        logits = decoded(model, latent_pred[:1].expand(64, -1, -1), order, seed)
    alike = [
        torch.cdist(outputs.flatten(1), outputs.flatten(1)) < 1e-3 for outputs in (latent_pred, latent_target, logits)
    ]
    assert all(not one.all() for one in alike)
    assert not torch.equal(alike[1], alike[2])


def test_position_table_has_rows_before_columns():
    table = CAE(Encoder((6, 10), 2, embed_dim=8, depth=1, num_heads=1), context=3, vocabulary=2).positions
    expected = np.zeros((1 + 15, 8))
    for row in range(3):
        for column in range(5):
            for k in range(2):
                rate = 1 / 10000 ** (k / 2)
                waves = [np.sin(row * rate), np.cos(row * rate), np.sin(column * rate), np.cos(column * rate)]
                expected[1 + row * 5 + column, k::2] = waves
    np.testing.assert_allclose(table.numpy(), expected, atol=1e-6)


def test_the_encoder_keeps_its_initialisation_and_the_rest_starts_as_published():
    torch.manual_seed(0)
    encoder = Encoder(32, 4, embed_dim=96, depth=2, num_heads=3, init_values=0.1)
    before = copy.deepcopy(encoder.state_dict())
    model = CAE(encoder, context=17, vocabulary=200, decoder_embed_dim=64, decoder_num_heads=4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.encoder.state_dict().items())
    assert len(model.regressor_blocks) == len(model.decoder_blocks) == 4
    assert 0.005 < model.mask_token.std() < 0.015
    assert model.mask_token.abs().max() <= 0.02
    added = {name: p for name, p in model.named_parameters() if not name.startswith("encoder.")}
    for name, parameter in added.items():
        if name.endswith("weight") and parameter.ndim == 2:
            bound = (6 / sum(parameter.shape)) ** 0.5
            assert 0.9 * bound < parameter.abs().max() <= bound, name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif name.endswith("gamma"):
            assert (parameter == 0.1).all(), name


def test_every_parameter_learns_and_nothing_else_is_saved():
    model = shaken(tiny(decoder_embed_dim=24))
    model(*drawn(model.encoder, 3))["loss"].backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_bfloat16_autocast():
    model = tiny(decoder_embed_dim=24)
    batch = drawn(model.encoder, 4)
    exact = model(*batch)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(*batch)["loss"]
    rough.backward()
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.02)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_forty_steps_memorise_four_images():
    torch.manual_seed(0)
    model = tiny(vocabulary=8)
    batch = drawn(model.encoder, 4, vocabulary=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        metrics = model(*batch)
        metrics["loss"].backward()
        optimizer.step()
    assert metrics["token_loss"] < 0.5 * math.log(8)
    assert metrics["accuracy"] > 2 / 8


def test_zero_alignment_weight():
    model = tiny(alignment_weight=0.0)
    images, tokens, order = drawn(model.encoder, 2)
    metrics = model(images, tokens, order)
    assert metrics["alignment_loss"] == 0
    logits = decoded(model, model.latents(images, order)[0], order)
    assert metrics["loss"].item() == pytest.approx(
        F.cross_entropy(logits.flatten(0, 1), tokens.gather(1, order[:, 5:] - 1).flatten()).item()
    )


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"context": 1}, "context of 1"),
        ({"context": 13}, "context of 13"),
        ({"decoder_num_heads": 5}, "heads"),
        ({"regressor_depth": 0}, "block"),
        ({"decoder_depth": 0}, "block"),
        ({"decoder_embed_dim": 18}, "divisible by 4"),
    ],
)
def test_invalid_settings(changes, match):
    encoder = Encoder((6, 8), 2, embed_dim=16, depth=1, num_heads=2)
    with pytest.raises(ValueError, match=match):
        CAE(encoder, **{"context": 5, "vocabulary": 3, **changes})


def test_stochastic_depth_drops_either_branch_of_the_regressor():
    block = shaken(RegressorBlock(16, 2, 4.0, 0.5).double())
    rows, context, positions = (torch.randn(1, count, 16, dtype=torch.double) for count in (4, 8, 12))
    kept, dropped = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    hidden = block.norm2(rows)
    found = block(rows, context, positions, torch.cat([dropped, kept]))
    torch.testing.assert_close(found, hidden + block.mlp(hidden, block.ls2), atol=1e-12, rtol=0)
    readable = torch.cat([context, rows], dim=1)
    keys, values = block.norm1_k(readable + positions), block.norm1_v(readable)
    read = block.cross_attn(block.norm1_q(rows + positions[:, 8:]), keys, values, block.ls1)
    found = block(rows, context, positions, torch.cat([kept, dropped]))
    torch.testing.assert_close(found, block.norm2(rows + read), atol=1e-12, rtol=0)


def test_the_decoder_adds_the_positions_of_the_masked_patches():
    model = shaken(tiny().double())
    _, _, order = drawn(model.encoder, 3)
    latents = torch.randn(3, 8, 16, dtype=torch.double)
    rows = latents + model.positions.double()[order[:, 5:]]
    for block in model.decoder_blocks:
        rows = block(rows)
    torch.testing.assert_close(model.decode(latents, order), model.decoder_norm(rows), atol=1e-6, rtol=0)


def test_keys_of_the_regressor_have_no_bias():
    names = [name for name, _ in tiny().regressor_blocks[0].cross_attn.named_parameters() if "bias" in name]
    assert names == ["q.bias", "v.bias", "proj.bias"]


def test_every_norm_has_the_published_epsilon():
    norms = [module for module in tiny(decoder_embed_dim=24).modules() if isinstance(module, torch.nn.LayerNorm)]
    assert {module.eps for module in norms} == {1e-6}


def test_streams_of_random_numbers_are_independent_of_each_other_and_of_the_encoders():
    drawn_bits = [fork_seed(torch.arange(4), stream).tolist() for stream in (TEACHER, REGRESSOR, DECODER)]
    assert len({tuple(bits) for bits in [torch.arange(4).tolist(), *drawn_bits]}) == 4


def test_one_block_of_each_kind_is_enough():
    encoder = Encoder((6, 8), PATCH, embed_dim=16, depth=1, num_heads=2)
    model = CAE(encoder, context=5, vocabulary=11, regressor_depth=1, decoder_depth=1)
    assert model(*drawn(encoder, 2))["loss"].isfinite()


def test_the_mask_token_is_drawn_as_published():
    with patch.object(torch.nn.init, "trunc_normal_", wraps=torch.nn.init.trunc_normal_) as drawn_by:
        tiny()
    assert drawn_by.call_args_list[-1].kwargs == {"std": 0.02, "a": -0.02, "b": 0.02}


def test_defaults_are_those_of_the_published_base_model():
    encoder = Encoder((6, 8), PATCH, embed_dim=24, depth=1, num_heads=12)
    model = CAE(encoder, context=5, vocabulary=11)
    assert (len(model.regressor_blocks), len(model.decoder_blocks), model.alignment_weight) == (4, 4, 2.0)
