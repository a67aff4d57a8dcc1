"""MAE: masked pixels never reach the encoder, and slices give the same pixels as the dense form."""

import copy

import pytest
import torch

from mapet.method.encoder import SIZES, Encoder, sincos
from mapet.method.mae import DECODERS, MAE, patchify
from mapet.method.order import STRATEGIES, gather_rows
from method_oracle import drawn, influence, plain_block, shaken

PATCH = 2


def tiny(context=5, normalize_pixels=True, decoder_depth=2, **changes):
    settings = {"img_size": (6, 8), "patch_size": PATCH, "in_chans": 2, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return MAE(
        Encoder(**{**settings, **changes}),
        context=context,
        decoder_embed_dim=12,
        decoder_depth=decoder_depth,
        decoder_num_heads=3,
        normalize_pixels=normalize_pixels,
    )


@pytest.mark.parametrize("context", [1, 2, 5, 12])
def test_masked_pixels_never_reach_encoder_or_decoder(context):
    model = shaken(tiny(context).double())
    images, _, order = drawn(model.encoder, 3)
    images.requires_grad_()
    given, masked = order[:, 1:context] - 1, order[:, context:] - 1
    for outputs in (model.latents(images, order), model.predict_pixels(images, order)):
        sources = influence(outputs, images, PATCH) if context > 1 else torch.zeros(3, 12)
        assert (sources.gather(1, masked) == 0).all()
        assert (sources.gather(1, given) > 1e-9).all()
    if context == 1:
        assert not model.predict_pixels(images, order).isnan().any()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("context", [1, 4, 12])
def test_masks_exactly_the_requested_number(strategy, context):
    model = tiny(context)
    images, _, _ = drawn(model.encoder, 3)
    order = STRATEGIES[strategy](model.encoder.grid, 13 - context, 0, 0, torch.arange(3))
    assert model.latents(images, order).shape == (3, context, 16)
    shape = (3, 13 - context, PATCH * PATCH * 2)
    assert model.predict_pixels(images, order).shape == model.target(images, order).shape == shape


def dense_pixels(model, images, order):
    """Image by image: encode, restore the natural order, decode all positions, select the masked patches."""
    encoder, context, predicted = model.encoder, model.context, []
    for image, positions in zip(images, order, strict=True):
        rows = (encoder.embed(image[None]) + encoder.pos_embed)[:, positions[:context]]
        for block in encoder.blocks:
            rows = plain_block(block, rows, torch.ones(context, context, dtype=torch.bool))
        latents = model.decoder_embed(encoder.norm(rows))
        decoded = model.mask_token.repeat(1, 1 + encoder.length, 1)
        decoded[:, positions[:context]] = latents
        decoded = decoded + model.decoder_pos_embed
        for block in model.decoder_blocks:
            decoded = plain_block(block, decoded, torch.ones(2 * (1 + encoder.length,), dtype=torch.bool))
        predicted.append(model.decoder_pred(model.decoder_norm(decoded))[0, positions[context:]])
    return torch.stack(predicted)


@pytest.mark.parametrize("decoder_depth", [1, 2])
def test_slices_equal_the_dense_form_in_pixels_and_gradients(decoder_depth):
    model = shaken(tiny(decoder_depth=decoder_depth, init_values=0.5).double())
    images, _, order = drawn(model.encoder, 3)
    ours, dense = model.predict_pixels(images, order), dense_pixels(model, images, order)
    torch.testing.assert_close(ours, dense, atol=1e-10, rtol=0)
    assert ours.std() > 0.1
    direction = torch.randn_like(ours)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found, expected = (torch.autograd.grad((pixels * direction).sum(), parameters) for pixels in (ours, dense))
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=0)


def test_patches_row_by_row_channel_last():
    images = torch.randn(2, 3, 4, 9)
    patches = patchify(images, (2, 3))
    assert patches.shape == (2, 2 * 3, 2 * 3 * 3)
    for row in range(2):
        for column in range(3):
            corner = images[:, :, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
            assert torch.equal(patches[:, 3 * row + column], corner.permute(0, 2, 3, 1).flatten(1))


def test_targets_are_normalised_patch_by_patch():
    model = tiny()
    images, _, order = drawn(model.encoder, 4)
    target = model.target(5 + 3 * images, order)
    torch.testing.assert_close(target.mean(-1), torch.zeros(4, 8), atol=1e-4, rtol=0)
    torch.testing.assert_close(target.var(-1), torch.ones(4, 8), atol=1e-4, rtol=0)
    assert (model.target(torch.ones_like(images), order) == 0).all()
    raw = tiny(normalize_pixels=False).target(images, order)
    assert torch.equal(raw, gather_rows(patchify(images, (PATCH, PATCH)), order[:, 5:] - 1))


@pytest.mark.parametrize("normalized", [False, True])
def test_loss_is_the_mean_over_masked_patches_and_ignores_tokens(normalized):
    model = shaken(tiny(normalize_pixels=normalized))
    images, tokens, order = drawn(model.encoder, 4)
    metrics = model(images, None, order)
    errors = (model.predict_pixels(images, order) - model.target(images, order)).square().mean(-1)
    assert list(metrics) == ["loss"]
    assert metrics["loss"].item() == pytest.approx(errors.mean().item(), rel=1e-5)
    assert torch.equal(model(images, tokens, order)["loss"], metrics["loss"])


def test_the_encoder_keeps_its_initialisation_and_the_rest_starts_as_published():
    torch.manual_seed(0)
    encoder = Encoder(64, 8, embed_dim=96, depth=2, num_heads=3)
    before = copy.deepcopy(encoder.state_dict())
    model = MAE(encoder, context=17, decoder_embed_dim=64, decoder_depth=2, decoder_num_heads=4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.encoder.state_dict().items())
    assert torch.equal(model.decoder_pos_embed[0], sincos((8, 8), 64))
    assert not model.decoder_pos_embed.requires_grad
    assert 0.01 < model.mask_token.std() < 0.03
    for name, parameter in model.named_parameters():
        if name.startswith("decoder") and name.endswith("weight") and "norm" not in name:
            bound = (6 / sum(parameter.shape)) ** 0.5
            assert 0.9 * bound < parameter.abs().max() <= bound, name
        elif name.startswith("decoder") and name.endswith("bias"):
            assert (parameter == 0).all(), name


def test_every_named_size_has_its_decoder():
    assert DECODERS.keys() == SIZES.keys()
    for name, decoder in DECODERS.items():
        encoder = Encoder(16, 4, embed_dim=SIZES[name]["embed_dim"], depth=1, num_heads=1)
        model = MAE(encoder, context=5, **{**decoder, "decoder_depth": 1})
        assert model.predict_pixels(*drawn(encoder, 1)[::2]).shape == (1, 12, 4 * 4 * 3)


def test_stochastic_depth_follows_each_images_seed():
    model = shaken(tiny(drop_path_rate=0.5)).train()
    images, _, order = drawn(model.encoder, 16)
    seed = torch.arange(16)
    with torch.no_grad():
        together = model.predict_pixels(images, order, seed)
        parts = [slice(k, k + 1) for k in range(16)]
        apart = torch.cat([model.predict_pixels(images[part], order[part], seed[part]) for part in parts])
        torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(together, model.eval().predict_pixels(images, order, seed), atol=1e-2)


def test_bfloat16_autocast():
    model = tiny()
    images, _, order = drawn(model.encoder, 4)
    exact = model(images, None, order)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(images, None, order)["loss"]
    rough.backward()
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.02)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_eighty_steps_memorise_two_images():
    torch.manual_seed(0)
    model = tiny(decoder_depth=1, depth=1)
    images, _, order = drawn(model.encoder, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        loss = model(images, None, order)["loss"]
        loss.backward()
        optimizer.step()
    assert loss < 0.3  # predicting the mean costs 7/8


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"context": 0}, "context of 0"),
        ({"context": 13}, "context of 13"),
        ({"decoder_num_heads": 5}, "heads"),
        ({"decoder_depth": 0}, "block"),
    ],
)
def test_invalid_settings(changes, match):
    encoder = Encoder((6, 8), 2, embed_dim=16, depth=1, num_heads=2)
    settings = {"context": 5, "decoder_embed_dim": 12, "decoder_depth": 1, "decoder_num_heads": 3, **changes}
    with pytest.raises(ValueError, match=match):
        MAE(encoder, **settings)


def test_decoders_are_those_of_mae_and_mae_lite():
    """MAE (arXiv 2111.06377): eight blocks of width 512. MAE-Lite (arXiv 2205.14443): one of half of the width."""
    published = {name: tuple(decoder.values()) for name, decoder in DECODERS.items()}
    large = (512, 8, 16)
    assert published == {"vit_tiny": (96, 1, 3), "vit_small": (192, 1, 6), "vit_base": large, "vit_large": large}


def test_a_nearly_constant_patch_is_divided_by_its_deviation_and_a_millionth_of_variance():
    """As in MAE's code, which adds 1e-6 to the variance."""
    model = tiny()
    images, _, order = drawn(model.encoder, 4)
    images = 0.5 + 1e-3 * images.double()
    patches = gather_rows(patchify(images, (PATCH, PATCH)), order[:, 5:] - 1)
    expected = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(model.target(images, order).double(), expected, atol=1e-4, rtol=1e-4)


def test_every_norm_has_the_published_epsilon():
    norms = [module for module in tiny().modules() if isinstance(module, torch.nn.LayerNorm)]
    assert {module.eps for module in norms} == {1e-6}


def test_pixels_are_normalised_unless_told_otherwise():
    model = MAE(tiny().encoder, context=5, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)
    images, _, order = drawn(model.encoder, 2)
    assert torch.equal(model.target(images, order), tiny().target(images, order))
