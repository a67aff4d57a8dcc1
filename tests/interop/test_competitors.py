"""Parity of BEiT, CAE and MAE with their published code, number by number, and of MAE with transformers."""

import re

import pytest
import torch
from torch.nn import functional as F

from golden_numbers import Golden
from mapet.interop.competitors import load_beit, load_cae, load_mae
from mapet.method.order import gather_rows
from mapet.utils.errors import MapetError

OUTPUT, LOSS, GRADIENT = 2e-5, 1e-5, 2e-5  # float32 on a CPU; gradients: plus 1e-4 of the largest entry
CAES = ("cae", "cae_proj")
LOADERS = {"beit_mim": load_beit, "cae": load_cae, "cae_proj": load_cae, "mae": load_mae}
TRANSFORMERS = (  # names of version 5
    (r"^vit\.embeddings\.cls_token", "cls_token"),
    (r"^vit\.embeddings\.position_embeddings", "pos_embed"),
    (r"^vit\.embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^vit\.layers\.", "blocks."),
    (r"^vit\.layernorm", "norm"),
    (r"^decoder\.decoder_layers\.", "decoder_blocks."),
    (r"^decoder\.(mask_token|decoder_)", r"\1"),
    (r"attention\.q_proj", "attn.query"),
    (r"attention\.k_proj", "attn.key"),
    (r"attention\.v_proj", "attn.value"),
    (r"attention\.o_proj", "attn.proj"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
)


def load(golden, loader, **changes):
    config = golden.config
    settings = {
        "image_size": config["img_size"],
        "patch_size": config["patch_size"],
        "heads": config["num_heads"],
        "context": config["context"],
    }
    if "decoder_num_heads" in config:
        settings["decoder_heads"] = config["decoder_num_heads"]
    return loader(golden.weights, **{**settings, **changes}).eval()


def close(found, expected, bound=OUTPUT, name=""):
    torch.testing.assert_close(found, expected, atol=bound, rtol=0, msg=lambda text: f"{name}: {text}")


def compare_gradients(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        close(found[name], gradient, GRADIENT + 1e-4 * gradient.abs().max().item(), name)


def split_bias(name, gradient):
    """Gradient of a joint bias by published names; keys have no bias there, and zero gradient here."""
    query, key, value = gradient.chunk(3)
    close(key, torch.zeros_like(key), GRADIENT, name)
    return {name.replace("qkv.bias", "q_bias"): query, name.replace("qkv.bias", "v_bias"): value}


def gradients(model, published):
    """All gradients by published names; joint biases are split except for MAE's."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            theirs, joint = published(name), name.endswith("qkv.bias") and published is not mae_name
            found |= split_bias(theirs, parameter.grad) if joint else {theirs: parameter.grad}
    return found


def beit_name(name):
    name = name.removeprefix("encoder.").replace("head.", "lm_head.")
    return re.sub(r"ls(\d)\.gamma", r"gamma_\1", name)


def cae_name(name):
    if name.startswith(("regressor_blocks", "decoder_blocks", "head")):
        name = f"pretext_neck.{name}"
    name = name.replace("regressor_norm", "pretext_neck.norm").replace("decoder_norm", "pretext_neck.norm2")
    name = name.replace("to_decoder.0", "to_decoder").replace("to_decoder.1", "to_decoder_norm")
    name = re.sub(r"ls(\d)\.gamma", r"gamma_\1", name)
    if "regressor_blocks" in name:
        name = re.sub(r"(mlp|norm2)\.", r"\1_cross.", name)
        name = re.sub(r"(gamma_\d)", r"\1_cross", name)
        name = re.sub(r"cross_attn\.([qv])\.bias", r"cross_attn.\1_bias", name)
    return name


def mae_name(name):
    return name.removeprefix("encoder.")


def test_beit():
    golden = Golden("beit_mim")
    model = load(golden, load_beit)
    images, tokens, order = golden["images"], golden["tokens"], golden["order"]
    close(model.logits(images, order), golden["logits"])
    loss = model(images, tokens, order)["loss"]
    close(loss, golden["loss"], LOSS)
    loss.backward()
    compare_gradients(gradients(model, beit_name), golden.gradients())


@pytest.mark.parametrize("case", CAES)
def test_cae_outputs(case):
    golden = Golden(case)
    model = load(golden, load_cae)
    images, order = golden["images"], golden["order"]
    rows = model.encoder.embed(images) + model.encoder.pos_embed
    close(model.encoder.run(gather_rows(rows, order[:, : model.context])), golden["encoder_output"])
    latent_pred, latent_target = model.latents(images, order)
    close(latent_pred, golden["latent_predicted"])
    close(latent_target, golden["latent_target"])
    close(model.head(model.decode(latent_pred, order)), golden["logits"])
    assert not latent_target.requires_grad


@pytest.mark.parametrize("case", CAES)
def test_cae_losses_and_every_gradient(case):
    golden = Golden(case)
    model = load(golden, load_cae)
    metrics = model(golden["images"], golden["tokens"], golden["order"])
    close(metrics["token_loss"], golden["loss_main"], LOSS)
    close(metrics["alignment_loss"], golden["loss_align"], LOSS)
    close(metrics["alignment_loss"], golden.config["align_weight"] * golden["loss_align_unweighted"], LOSS)
    close(metrics["loss"], golden["loss_total"], LOSS)
    hits = (golden["logits"].argmax(-1) == golden["targets"]).float().mean()
    close(metrics["accuracy"], hits, 0)
    metrics["loss"].backward()
    compare_gradients(gradients(model, cae_name), golden.gradients())


def test_mae_outputs():
    golden = Golden("mae")
    model = load(golden, load_mae)
    images, order = golden["images"], golden["order"]
    close(model.latents(images, order), golden["latent"])
    patches = order[:, model.context :] - 1
    close(model.predict_pixels(images, order), gather_rows(golden["pred"], patches))
    assert torch.equal(torch.zeros_like(golden["mask"]).scatter_(1, patches, 1.0), golden["mask"])
    raw = load(golden, load_mae, normalize_pixels=False)
    close(raw.target(images, order), gather_rows(golden["target_patches"], patches), 0)
    close(raw(images, None, order)["loss"], golden["loss"], LOSS)


def test_mae_loss_and_every_gradient():
    golden = Golden("mae")
    model = load(golden, load_mae)
    loss = model(golden["images"], None, golden["order"])["loss"]
    close(loss, golden["loss_norm_pix"], LOSS)
    loss.backward()
    compare_gradients(gradients(model, mae_name), golden.gradients())


@pytest.mark.parametrize("normalized", [False, True])
def test_mae_is_transformers(normalized):
    """``ViTMAEForPreTraining`` with random weights, translated name by name."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTMAEConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        layer_norm_eps=1e-6,
        image_size=20,
        patch_size=4,
        num_channels=2,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=64,
        mask_ratio=0.6,
        norm_pix_loss=normalized,
    )
    theirs = transformers.ViTMAEForPreTraining(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    ours = load_mae(
        published_mae(theirs.state_dict()),
        image_size=20,
        patch_size=4,
        heads=3,
        decoder_heads=4,
        context=1 + 10,
        normalize_pixels=normalized,
    )
    images, noise = torch.randn(3, 2, 20, 20), torch.rand(3, 25)
    order = F.pad(noise.argsort(dim=1) + 1, (1, 0))
    expected = theirs(images, noise=noise)
    close(ours.predict_pixels(images, order), gather_rows(expected.logits, order[:, 11:] - 1))
    loss = ours(images, None, order)["loss"]
    close(loss, expected.loss, LOSS)
    loss.backward()
    expected.loss.backward()
    wanted = published_mae({n: p.grad for n, p in theirs.named_parameters() if p.grad is not None})
    compare_gradients(gradients(ours, mae_name), wanted)


def published_mae(weights):
    """Rename transformers' weights to the published names; join queries, keys and values."""
    renamed = {}
    for name, tensor in weights.items():
        for pattern, new in TRANSFORMERS:
            name = re.sub(pattern, new, name)
        renamed[name] = tensor
    for name in [name for name in renamed if ".query." in name]:
        parts = [renamed.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        renamed[name.replace("attn.query", "attn.qkv")] = torch.cat(parts)
    return renamed


@pytest.mark.parametrize("case", LOADERS)
def test_errors_are_one_line_and_name_the_wrong_weights(case):
    golden, loader = Golden(case), LOADERS[case]
    start = "encoder." if case in CAES else ""
    missing = f"{start}blocks.1.mlp.fc2.bias"
    golden.weights = {name: tensor for name, tensor in golden.weights.items() if name != missing}
    with pytest.raises(MapetError, match=re.escape(missing)) as missing_tensor:
        load(golden, loader)
    golden = Golden(case)
    with pytest.raises(MapetError, match="do not fit") as other_size:
        load(golden, loader, image_size=2 * golden.config["img_size"])
    with pytest.raises(MapetError, match="context of 65") as nothing_masked:
        load(golden, loader, context=65)
    with pytest.raises(MapetError, match="5 heads") as heads:
        load(golden, loader, heads=5)
    for caught in (missing_tensor, other_size, nothing_masked, heads):
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", LOADERS)
def test_weights_of_another_method_are_refused(case):
    golden = Golden(case)
    golden.weights = Golden("mapet_pretrain_small").weights
    with pytest.raises(MapetError, match="These are not the weights of"):
        load(golden, LOADERS[case])


def test_a_relative_position_bias_is_refused():
    golden = Golden("beit_mim")
    golden.weights["rel_pos_bias.relative_position_bias_table"] = torch.zeros(228, 3)
    with pytest.raises(MapetError, match=r"relative_position_bias_table.*absolute positions"):
        load(golden, load_beit)
