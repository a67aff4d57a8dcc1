"""UPerNet against transformers' with shared weights; sliding windows, sizes that patches do not tile, and the loss."""

import re
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from forms import randomised
from mapet.data.augment import IMAGENET_MEAN, IMAGENET_STD
from mapet.evals.segmentation import Segmenting, segmented, shown
from mapet.evals.upernet import Adapters, Segmenter, sliding_logits

SIZE = {"patch_size": 4, "embed_dim": 32, "depth": 12, "num_heads": 2, "init_values": 0.1}


def segmenter(img_size=(48, 48), **changes):
    """Random weights, and batch norms with statistics that are not neutral."""
    model = Segmenter(img_size=img_size, num_classes=5, channels=16, auxiliary_channels=8, **{**SIZE, **changes})
    for module in randomised(model).modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


@pytest.fixture(scope="module")
def oracle():
    """transformers' UPerNet over BEiT with absolute positions, and ours with its weights."""
    from transformers import BeitConfig, UperNetConfig, UperNetForSemanticSegmentation

    ours = segmenter()
    backbone = BeitConfig(
        image_size=48, patch_size=4, hidden_size=32, num_hidden_layers=12, num_attention_heads=2,
        intermediate_size=128, use_absolute_position_embeddings=True, layer_scale_init_value=0.1, layer_norm_eps=1e-6,
        add_fpn=True, reshape_hidden_states=True, out_indices=[4, 6, 8, 12],
    )  # fmt: skip
    config = UperNetConfig(
        backbone_config=backbone, hidden_size=16, auxiliary_channels=8, num_labels=5, auxiliary_in_channels=32
    )
    theirs = UperNetForSemanticSegmentation(config).eval()
    with torch.no_grad():
        for block in ours.blocks:
            block.attn.qkv.bias[32:64] = 0  # BEiT's keys have none
    return theirs, ours


NAMES = {  # ours: theirs
    r"blocks\.": "backbone.beit.layers.", r"norm1": "layernorm_before", r"norm2": "layernorm_after",
    r"attn\.proj": "attention.o_proj", r"ls1\.gamma": "lambda_1", r"ls2\.gamma": "lambda_2",
    r"^cls_token": "backbone.beit.embeddings.cls_token", r"^pos_embed": "backbone.beit.embeddings.position_embeddings",
    r"^patch_embed\.proj": "backbone.beit.embeddings.patch_embeddings.projection", r"^fpn\.": "backbone.fpn.",
    r"fpn1\.0": "fpn1.conv_transpose1", r"fpn1\.1": "fpn1.normalization", r"fpn1\.3": "fpn1.conv_transpose2",
}  # fmt: skip


def copied(theirs, ours):
    """Give them our weights; each of theirs must get one."""
    found = {}
    for name, tensor in ours.state_dict().items():
        for mine, other in NAMES.items():
            name = re.sub(mine, other, name)
        if "attn.qkv" in name:
            for part, values in zip("qkv", tensor.chunk(3), strict=True):
                found[name.replace("attn.qkv", f"attention.{part}_proj")] = values
        else:
            found[name] = tensor
    wanted = theirs.state_dict().keys()
    assert {name for name in found.keys() - wanted if not name.endswith("k_proj.bias")} == set()
    return theirs.load_state_dict({name: found[name] for name in wanted})


@torch.no_grad()
def test_it_equals_that_of_transformers_with_shared_weights(oracle):
    theirs, ours = oracle
    copied(theirs, ours)
    images = torch.randn(3, 3, 48, 48)
    logits = ours(images)
    assert logits.abs().max() > 0.1
    torch.testing.assert_close(logits, theirs(images).logits, atol=1e-4, rtol=0)
    auxiliary = ours.auxiliary_head(ours.pyramid(images))
    maps = theirs.backbone(images).feature_maps
    torch.testing.assert_close(auxiliary, theirs.auxiliary_head(list(maps)), atol=1e-4, rtol=0)
    assert ours.taps == [4, 6, 8, 12]


@torch.no_grad()
def test_one_window_is_the_model_and_windows_are_averaged():
    model = segmenter((16, 16), depth=2)
    images = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(sliding_logits(model, images), model(images))
    wide = torch.randn(1, 3, 16, 28)
    found, left, right = sliding_logits(model, wide, 12), model(wide[..., :16]), model(wide[..., 12:])
    torch.testing.assert_close(found[..., :12], left[..., :12])
    torch.testing.assert_close(found[..., 12:16], (left[..., 12:] + right[..., :4]) / 2)
    torch.testing.assert_close(found[..., 16:], right[..., 4:])


@torch.no_grad()
@pytest.mark.parametrize("size", [(9, 30), (3, 5), (16, 50)])
def test_any_size_is_segmented(size):
    model = segmenter((16, 16), depth=2)
    assert segmented(model, torch.randn(3, *size), size).shape == size
    assert segmented(model, torch.randn(3, *size), (11, 7)).max() < 5


def test_the_loss_is_the_weighted_sum_of_both_heads_over_all_pixels():
    model = Segmenting(segmenter((16, 16), depth=2), 0.4).train()
    images, targets = torch.randn(2, 3, 16, 16), torch.randint(-1, 5, (2, 16, 16))
    model.segmenter.decode_head.dropout.p = model.segmenter.auxiliary_head.dropout.p = 0.0
    logits, auxiliary = model.segmenter.both(images)
    found = model(images, targets, torch.arange(2))
    expected = sum(
        weight * F.cross_entropy(one, targets, ignore_index=-1, reduction="sum") / targets.numel()
        for weight, one in ((1, logits), (0.4, auxiliary))
    )
    torch.testing.assert_close(found["loss"], expected)
    known = targets >= 0
    assert found["accuracy"] == (logits.argmax(1) == targets)[known].float().mean()
    ignored = model(images, torch.full_like(targets, -1), torch.arange(2))
    assert ignored["loss"] == ignored["accuracy"] == 0


def test_every_parameter_is_trained():
    model = Segmenting(segmenter((16, 16), depth=3, drop_path_rate=0.5)).train()
    model(torch.randn(2, 3, 16, 16), torch.randint(0, 5, (2, 16, 16)), torch.arange(2))["loss"].backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_stochastic_depth_depends_on_the_seed():
    model = segmenter((16, 16), depth=4, drop_path_rate=0.8).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    images = torch.randn(2, 3, 16, 16)
    one, same, other = (model.pyramid(images, torch.tensor(seed))[2] for seed in ([1, 2], [1, 2], [3, 4]))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((40, 20), (32, 16)),
        ((10, 15), (16, 24)),
        ((80, 20), (64, 16)),
        ((100, 10), (64, 6)),
        ((1, 999), (1, 64)),
        ((999, 1), (64, 1)),
    ],
)
def test_the_shorter_side_of_a_test_image_is_a_window_and_the_longer_at_most_four(size, seen):
    found = shown(Image.new("RGB", size, (255, 0, 51)), SimpleNamespace(img_size=(16, 20)))
    assert found.shape == (3, seen[1], seen[0])
    color = (torch.tensor([1, 0, 0.2]) - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(found, color[:, None, None].expand_as(found), atol=1e-5, rtol=0)


def test_without_seeds_each_image_draws_its_own_depth():
    model = segmenter((16, 16), depth=3, drop_path_rate=0.5).train()
    assert model.pyramid(torch.randn(3, 3, 16, 16))[0].shape[0] == 3


@pytest.mark.parametrize(("grid", "least"), [((2, 2), (1, 1)), ((1, 3), (1, 3)), ((3, 5), (1, 2)), ((2, 4), (1, 2))])
def test_the_last_level_has_at_least_one_position(grid, least):
    levels = Adapters(4)([torch.randn(1, 4, *grid)] * 4)
    height, width = grid
    wanted = [(4 * height, 4 * width), (2 * height, 2 * width), grid, least]
    assert [tuple(level.shape[-2:]) for level in levels] == wanted
