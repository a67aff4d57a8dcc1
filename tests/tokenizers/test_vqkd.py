"""VQ-KD against the numbers of the published implementation, and its refusals."""

import pytest
import torch
from torch.nn.functional import normalize

from golden_numbers import Golden
from mapet.tokenizers.tokenizer import load_tokenizer
from mapet.tokenizers.vqkd import VQKD, patches
from mapet.utils.errors import MapetError

OUTPUT = 2e-5  # float32 on a CPU
SIZES = {"image_size": 48, "patch_size": 8, "heads": 4}


@pytest.fixture(scope="module")
def golden():
    return Golden("vqkd")


@pytest.fixture(scope="module")
def network(golden):
    return VQKD.from_beit2(golden.weights, **SIZES)


def test_every_stage_is_the_published_one(golden, network):
    images = golden["images"]
    with torch.no_grad():
        encoded = patches(network.encoder, golden["preprocessed"])
        features = network.features(images)
    torch.testing.assert_close(encoded, golden["encoder_tokens"], atol=OUTPUT, rtol=0)
    torch.testing.assert_close(features, golden["features"], atol=OUTPUT, rtol=0)
    tokens = network.encode(images)
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, golden["codes"])
    quantized = network.codes[tokens].transpose(1, 2).unflatten(2, network.grid)
    torch.testing.assert_close(quantized, golden["quantized"], atol=OUTPUT, rtol=0)


def test_a_pictures_tokens_do_not_hang_on_its_neighbours(golden, network):
    """Where the published code would map a batch with one value above 1 otherwise."""
    images = golden["images"]
    brighter = torch.cat([images[:1], images[1:2] + 0.5])
    assert brighter.max() > 1
    assert torch.equal(network.encode(brighter)[0], golden["codes"][0])
    assert torch.equal(torch.cat([network.encode(image[None]) for image in images]), golden["codes"])


def test_only_what_tokens_need_is_read(golden, network):
    needed = ("encoder.", "encode_task_layer.", "quantize.embedding.weight")
    few = {name: tensor for name, tensor in golden.weights.items() if name.startswith(needed)}
    assert len(few) < len(golden.weights)
    extra = {"scaling_layer.shift": torch.zeros(3), "teacher_model.positions": torch.zeros(5), "loss": torch.zeros(1)}
    for weights in (few, {**golden.weights, **extra}):
        assert VQKD.from_beit2(weights, **SIZES).hash == network.hash


def test_saved_is_loaded(golden, network, tmp_path):
    network.save(tmp_path / "vqkd")
    again = load_tokenizer(tmp_path / "vqkd")
    assert (again.kind, again.view, again.grid, again.vocabulary) == ("vqkd", network.view, (6, 6), 64)
    assert again.hash == network.hash
    assert torch.equal(again.encode(golden["images"]), golden["codes"])
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_the_default_sizes_are_the_published_ones():
    """BEiT v2's tokenizer: ViT-B/16 over images of 224 pixels, 8192 codes of 32 numbers."""
    with torch.device("meta"):
        network = VQKD()
    assert (network.view.size, network.grid, network.vocabulary) == ((224, 224), (14, 14), 8192)
    assert network.codes.shape == (8192, 32)
    assert (len(network.encoder.blocks), network.encoder.embed_dim) == (12, 768)
    assert network.encoder.blocks[0].attn.num_heads == 12


def test_oblong_pictures_have_their_grid():
    network = VQKD(image_size=(8, 12), patch_size=4, embed_dim=8, depth=1, num_heads=2, codes=5, code_dim=3)
    images = torch.rand(2, 3, 8, 12)
    assert (network.grid, network.view.size) == ((2, 3), (8, 12))
    tokens = network.encode(images)
    assert tokens.shape == (2, 6)
    similar = normalize(network.features(images), dim=-1) @ network.codes.T
    assert torch.equal(tokens, similar.argmax(dim=-1))


@pytest.mark.parametrize(
    ("missing", "changes", "said"),
    [
        ("encoder.blocks.1.attn.v_bias", {}, r"encoder\.blocks\.1\.attn\.v_bias"),
        ("quantize.embedding.weight", {}, r"quantize\.embedding\.weight"),
        ("encoder.blocks.0.norm1.bias", {}, r"encoder\.blocks\.0\.norm1\.bias"),
        (None, {"image_size": 96}, "pos_embed"),
        (None, {"image_size": 50}, "must divide the image size"),
        (None, {"heads": 3}, "heads must divide the width"),
    ],
)
def test_other_weights_and_sizes_are_refused(golden, missing, changes, said):
    weights = {name: tensor for name, tensor in golden.weights.items() if name != missing}
    with pytest.raises(MapetError, match=said) as caught:
        VQKD.from_beit2(weights, **{**SIZES, **changes})
    assert "\n" not in str(caught.value)


def test_unknown_parts_of_the_encoder_are_refused(golden):
    weights = {**golden.weights, "encoder.blocks.0.gamma_1": torch.ones(40)}
    with pytest.raises(MapetError, match="gamma_1"):
        VQKD.from_beit2(weights, **SIZES)
