"""What a checkpoint file does not store is assumed aloud: heads, grid, and the statistics of its images."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from mapet.api.encoders import load_from
from mapet.cli import main
from mapet.interop.checkpoint import _heads, open_checkpoint
from mapet.method.encoder import Encoder
from mapet.method.mae import MAE
from mapet.utils.errors import MapetError


def saved(path, weights):
    torch.save(weights, path)
    return path


def plain(path, size=32):
    network = VisionTransformer(img_size=size, patch_size=8, embed_dim=192, depth=1, num_heads=12, num_classes=0)
    return saved(path, network.state_dict())


def test_the_line_of_from_says_which_heads_were_assumed(images, tmp_path, capsys):
    path = plain(tmp_path / "vit.pth")
    assert main(["knn", str(path), "--data", str(images), "--k", "3", "--accelerator", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "3 heads assumed (width / 64; give --num-heads if it has others)" in said
    assert "a grid of 4 × 4 assumed, ImageNet's mean and std assumed" in said
    assert main(["knn", str(path), "--data", str(images), "--k", "3", "--num-heads", "12", "--accelerator", "cpu"]) == 0
    assert "heads assumed" not in capsys.readouterr().out


@pytest.mark.parametrize(("width", "decoder", "heads"), [(192, 96, 12), (384, 192, 12), (192, 128, 3), (384, 96, 6)])
def test_mae_lite_has_twelve_heads(tmp_path, width, decoder, heads):
    encoder = Encoder(16, 8, embed_dim=width, depth=1, num_heads=12, pos_embed="sincos")
    mae = MAE(encoder, context=2, decoder_embed_dim=decoder, decoder_depth=1, decoder_num_heads=1)
    theirs = {name.removeprefix("encoder."): tensor for name, tensor in mae.state_dict().items()}
    found, assumed = open_checkpoint(saved(tmp_path / "mae.pth", theirs))
    assert found.num_heads == heads
    assert assumed[0].startswith(f"{heads} heads assumed ({'as MAE-Lite' if heads == 12 else 'width / 64'};")


@pytest.mark.parametrize(("width", "heads"), [(384, 12), (768, 12), (1024, 16)])
def test_cae_small_has_twelve_heads(width, heads):
    assert _heads({"pretext_neck.head.weight": torch.zeros(2, width)}, width)[0] == heads


def test_a_grid_that_is_not_square_is_refused(tmp_path):
    weights = torch.load(plain(tmp_path / "square.pth"))
    weights["pos_embed"] = torch.zeros(1, 9, 192)
    with pytest.raises(MapetError, match="positions for 8 patches and CLS, which is not a square grid"):
        load_from(saved(tmp_path / "long.pth", weights))


def test_the_statistics_of_mapet_are_known(tmp_path):
    """Its checkpoints have separate queries, in some blocks or all."""
    weights = torch.load(plain(tmp_path / "plain.pth"))
    _, assumed = open_checkpoint(tmp_path / "plain.pth")
    assert "ImageNet's mean and std assumed" in assumed
    for name in ("weight", "bias"):
        joined = weights.pop(f"blocks.0.attn.qkv.{name}")
        weights[f"blocks.0.attn.q.{name}"], weights[f"blocks.0.attn.kv.{name}"] = joined.split((192, 384))
    weights |= {"head.weight": torch.zeros(3, 192), "head.bias": torch.zeros(3)}
    found, assumed = open_checkpoint(saved(tmp_path / "mapet.pth", weights), heads=12)
    assert found.num_classes == 3
    assert assumed == ["a grid of 4 × 4 assumed"]
