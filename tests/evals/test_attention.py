"""What an encoder looks at: attention against timm's own, rollout and components against formulas."""

import numpy as np
import timm
import torch

from mapet.evals.attention import attention_maps, principal_colors, rollout, similarity
from mapet.interop.timm import from_timm
from mapet.method.encoder import Encoder


def test_attention_is_that_of_timm():
    source = timm.models.vision_transformer.VisionTransformer(32, 8, embed_dim=16, depth=2, num_heads=2, num_classes=0)
    images, found = torch.randn(2, 3, 32, 32), []
    for block in source.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_pre_hook(lambda module, given: found.append(given[0].detach()))
    source.eval()(images)
    expected = list(found)  # from_timm calls the model, too
    for ours, theirs in zip(attention_maps(from_timm(source), images), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_rollout_is_the_product_of_the_blocks():
    encoder = Encoder(16, 4, embed_dim=16, depth=3, num_heads=2)
    maps = attention_maps(encoder, torch.randn(1, 3, 16, 16))
    joint = torch.eye(17)
    for heads in maps:
        mixed = 0.5 * heads[0].mean(0) + 0.5 * torch.eye(17)
        joint = mixed / mixed.sum(1, keepdim=True) @ joint
    torch.testing.assert_close(rollout(maps)[0], joint[0, 1:])
    assert len(encoder.blocks[0].attn._forward_pre_hooks) == 0


def test_components_are_those_of_a_singular_value_decomposition():
    patches = torch.randn(3, 9, 8) * torch.tensor([9.0, 5, 3, 1, 1, 1, 1, 1])
    colors = principal_colors(patches).flatten(0, 1)
    centred = patches.flatten(0, 1) - patches.flatten(0, 1).mean(0)
    scores = centred @ torch.linalg.svd(centred).Vh[:3].T
    for ours, theirs in zip(colors.T, scores.T, strict=True):
        assert abs(np.corrcoef(ours.numpy(), theirs.numpy())[0, 1]) > 0.98  # the ends are clipped
    assert colors.min() == 0
    assert colors.max() == 1


def test_similarity_is_the_cosine():
    patches = torch.randn(2, 5, 7)
    expected = torch.nn.functional.cosine_similarity(patches, patches[:, 3:4], dim=2)
    torch.testing.assert_close(similarity(patches, 3), expected)


def test_extreme_colours_are_those_of_a_hundredth_of_the_patches_at_each_end():
    patches = torch.zeros(2, 100, 4)
    patches[..., 0] = torch.arange(200.0).view(2, 100)
    patches[..., 1:] = 0.01 * torch.randn(2, 100, 3)
    color = principal_colors(patches)[..., 0].flatten()
    assert color[:2].tolist() == [0, 0]
    assert color[-2:].tolist() == [1, 1]
    inner = (torch.arange(200.0) - 1.99) / (197.01 - 1.99)  # quantiles are interpolated
    torch.testing.assert_close(color, inner.clamp(0, 1), atol=1e-3, rtol=0)


def test_components_without_spread_have_one_colour():
    colors = principal_colors(torch.ones(1, 6, 4))
    assert colors.isfinite().all()
    assert (colors == colors[:, :1]).all()


def test_the_largest_loading_of_a_component_is_positive():
    patches = torch.zeros(1, 50, 4)
    patches[0, :, 2] = -torch.arange(50.0)
    assert (principal_colors(patches)[0, :, 0].diff() <= 0).all()
    assert (principal_colors(-patches)[0, :, 0].diff() >= 0).all()
