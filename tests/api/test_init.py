"""Pre-training from other weights: every layout, adapted where it must be, never a silent guess."""

import json
import re

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, ViTMAEConfig, ViTMAEForPreTraining

import mapet
from mapet.api.encoders import load_from
from mapet.build.initial import start_from
from mapet.cli import main
from mapet.data.augment import IMAGENET_MEAN, IMAGENET_STD
from mapet.engine.run import load_checkpoint
from mapet.interop import published
from mapet.method.encoder import Classifier, Encoder
from mapet.utils.errors import MapetError

SIZES = {"embed_dim": 16, "depth": 2, "num_heads": 2}
SMALL = {"model": "custom", **SIZES, "image_size": 16, "patch_size": 4, "batch_size": 8, "lr": 1e-3, "epochs": 2}
SHARED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
TOKENS = {"vocab_size": 16, "iterations": 3}


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def shaken(module):
    """Random weights everywhere: norms and layer scales at their start would hide errors."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(5)
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module.eval()


def normalized(pixels, mean, std):
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


@pytest.fixture(scope="module")
def first(images, tmp_path_factory):
    """A run to start from."""
    return mapet.pretrain(data=images, out=tmp_path_factory.mktemp("first") / "run", **SMALL, **TOKENS)


def test_the_same_objective_goes_on_from_the_whole_state(first, images, tmp_path, caplog):
    """Not one step is made: the first loss is that of the source's state because the weights are."""
    before = load_checkpoint(first.last)[1]
    run = mapet.pretrain(
        data=images, out=tmp_path / "run", init=first.folder, tokens=first.folder / "tokens",
        **{**SMALL, "epochs": 1, "lr": 0.0, "warmup_lr": 0.0, "min_lr": 0.0},
    )  # fmt: skip
    after = load_checkpoint(run.last)[1]
    names = [name for name in before if name.startswith("model/")]
    assert all(before[name].equal(after[name]) for name in names)
    assert "also used: head, mask_token" in caplog.text or "also used: head, mask_token" in run.log.read_text()
    record = json.loads((run.folder / "init.json").read_text())
    assert record["from"] == str(first.folder)
    assert re.fullmatch("[0-9a-f]{32}", record["hash"])


def test_other_tokens_leave_the_head_new(first, images, tmp_path):
    run = mapet.pretrain(data=images, out=tmp_path / "run", init=first.folder, **SMALL, vocab_size=8, iterations=3)
    text = run.log.read_text()
    assert "also used: mask_token; new: head" in text


def test_another_objective_uses_the_encoder(first, images, tmp_path):
    run = mapet.pretrain(data=images, out=tmp_path / "run", init=first.folder, objective="mae", **SMALL)
    assert "encoder of the run" in run.log.read_text()


def test_a_run_that_never_wrote_a_checkpoint_begins_from_the_same_weights(first, images, tmp_path):
    """A resume reads FROM again, and refuses one that has changed."""
    whole = mapet.pretrain(data=images, out=tmp_path / "a", init=first.folder, objective="mae", **SMALL)
    cut = mapet.pretrain(data=images, out=tmp_path / "b", init=first.folder, objective="mae", **SMALL)
    for path in [*(cut.folder / "checkpoints").iterdir(), cut.folder / "seconds.json", cut.metrics]:
        path.unlink(missing_ok=True)
    mapet.resume(cut.folder)
    one, two = (load_checkpoint(run.last)[1] for run in (whole, cut))
    assert all(one[name].equal(two[name]) for name in one)
    (cut.folder / "init.json").write_text(json.dumps({"from": "x", "hash": "0" * 32}))
    for path in [*(cut.folder / "checkpoints").iterdir(), cut.folder / "seconds.json", cut.metrics]:
        path.unlink(missing_ok=True)
    with pytest.raises(MapetError, match="has changed since"):
        mapet.resume(cut.folder)


@pytest.mark.parametrize("layer_scale", [None, 0.1])
@pytest.mark.parametrize("theirs", [None, 0.5])
def test_layer_scales_change_no_feature(layer_scale, theirs):
    source = shaken(VisionTransformer(32, 8, **SIZES, num_classes=0, init_values=theirs))
    found = published.from_timm(source)
    ours = Encoder(32, 8, **SIZES, init_values=layer_scale)
    start_from(ours, found)
    images = noise(2, 3, 32, 32)
    torch.testing.assert_close(ours.eval()(images), source.forward_features(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(48, 48), (32, 64)])
def test_positions_are_interpolated_as_timm_does(size):
    source = shaken(VisionTransformer(32, 8, **SIZES, num_classes=0))
    larger = VisionTransformer(size, 8, **SIZES, num_classes=0)
    larger.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(source.state_dict(), larger))
    ours = Encoder(size, 8, **SIZES)
    notes = start_from(ours, published.from_timm(source))
    images = noise(2, 3, *size)
    torch.testing.assert_close(ours.eval()(images), larger.eval().forward_features(images), rtol=0, atol=1e-5)
    assert notes == [f"positions interpolated from 4 × 4 to {size[0] // 8} × {size[1] // 8}"]


def test_grey_weights_see_grey_images_as_before():
    source = shaken(Encoder(16, 4, in_chans=1, **SIZES))
    ours = Encoder(16, 4, **SIZES)
    assert start_from(ours, source) == ["patch embedding of one channel spread over three"]
    grey = noise(2, 1, 16, 16)
    torch.testing.assert_close(ours.eval()(grey.expand(-1, 3, -1, -1)), source(grey), rtol=0, atol=1e-5)


def test_what_is_not_used_and_what_is_new_is_named():
    source = Classifier(16, 4, **SIZES, num_classes=3)
    assert start_from(Encoder(16, 4, **SIZES), source) == ["not used: head"]


def test_another_patch_size_is_said():
    ours = Encoder(32, 4, **SIZES)
    notes = start_from(ours, shaken(Encoder(32, 8, **SIZES)))
    assert "patch embedding resized from 8 × 8 to 4 × 4 pixels" in notes


@pytest.mark.parametrize(("known", "crop_pct"), [({}, 1.0), ({"crop_pct": None}, 1.0), ({"crop_pct": 0.875}, 0.875)])
def test_the_central_crop_of_timm_is_kept(known, crop_pct):
    source = VisionTransformer(32, 8, **SIZES, num_classes=3)
    source.pretrained_cfg = known
    assert published.of_timm(source).crop_pct == crop_pct


@pytest.mark.parametrize("classes", [0, 7])
def test_statistics_of_timm_are_folded_into_the_patch_embedding(classes):
    source = shaken(VisionTransformer(32, 8, **SIZES, num_classes=classes))
    source.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    found = published.of_timm(source)
    pixels = noise(2, 3, 32, 32).sigmoid()
    expected = source.forward_features(normalized(pixels, (0.5,) * 3, (0.5,) * 3))
    rows = mapet.method.encoder.Encoder.forward(found, normalized(pixels, IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(rows, expected, rtol=0, atol=1e-5)
    assert found.num_classes == classes


@pytest.mark.parametrize(("epsilon", "bound"), [(1e-6, 1e-5), (1e-12, 1e-4)])  # ours has 1e-6, transformers 1e-12
@pytest.mark.parametrize("kind", ["vit", "vit_mae"])
def test_a_folder_of_transformers(kind, epsilon, bound, tmp_path):
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
    sizes |= {"image_size": 32, "patch_size": 8, "layer_norm_eps": epsilon}
    if kind == "vit":
        source = shaken(ViTForImageClassification(ViTConfig(**sizes, num_labels=3)))
        forward = source.vit
    else:
        decoder = {
            f"decoder_{name}": value for name, value in sizes.items() if name not in ("image_size", "patch_size")
        }
        source = shaken(ViTMAEForPreTraining(ViTMAEConfig(**sizes, **decoder, mask_ratio=0.0)))
        forward = source.vit
    source.save_pretrained(tmp_path)
    ViTImageProcessor(image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(tmp_path)
    found = load_from(tmp_path)
    pixels = noise(2, 3, 32, 32).sigmoid()
    theirs = normalized(pixels, (0.5,) * 3, (0.25,) * 3)
    kept = {"noise": torch.arange(16.0).expand(2, -1)} if kind == "vit_mae" else {}  # in row-major order
    expected = forward(theirs, **kept).last_hidden_state
    rows = found.encoder(normalized(pixels, IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(rows, expected, rtol=0, atol=bound)


@pytest.fixture
def saved(tmp_path):
    """A folder of a ViT of transformers with its default image, patches and heads, and a function that changes it."""
    source = shaken(ViTForImageClassification(ViTConfig(hidden_size=24, num_hidden_layers=1, intermediate_size=48)))
    source.save_pretrained(tmp_path)
    path = tmp_path / "config.json"

    def changed(**changes):
        known = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({name: value for name, value in known.items() if value is not None}))
        return tmp_path

    return source.vit, changed


def test_what_a_folder_of_transformers_leaves_out_is_its_default(saved):
    source, changed = saved
    left_out = ("image_size", "patch_size", "num_attention_heads", "hidden_act", "qkv_bias")
    found = load_from(changed(**dict.fromkeys(left_out))).encoder
    assert (found.img_size, found.patch_size, found.num_heads) == ((224, 224), (16, 16), 12)
    pixels = noise(1, 3, 224, 224).sigmoid()
    expected = source(normalized(pixels, (0.5,) * 3, (0.5,) * 3)).last_hidden_state
    rows = found(normalized(pixels, IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(rows, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("other", [{"hidden_act": "relu"}, {"qkv_bias": False}])
def test_a_vit_of_transformers_that_computes_otherwise_is_refused(saved, other):
    with pytest.raises(MapetError, match="has another activation or no bias for queries, keys and values"):
        load_from(saved[1](**other))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("preprocessor_config.json", "[]", "preprocessor_config.json is not a JSON object: restore it"),
        ("preprocessor_config.json", "{", "preprocessor_config.json cannot be read"),
        ("model.safetensors", None, "holds no model.safetensors: give a folder that save_pretrained wrote"),
    ],
)
def test_a_damaged_folder_of_transformers_is_one_line(saved, file, content, said):
    folder = saved[1]()
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(MapetError, match=said):
        load_from(folder)


def test_a_vit_of_transformers_without_its_last_norm_is_refused(saved):
    folder = saved[1]()
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: one for name, one in weights.items() if "vit.layernorm." not in name}, folder / "model.safetensors"
    )
    with pytest.raises(MapetError, match="lacks the last norm of the vit in"):
        load_from(folder)


def test_another_model_of_transformers_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "swin"}))
    with pytest.raises(MapetError, match="is a swin of transformers: give one of vit, vit_mae, or an export"):
        load_from(tmp_path)


def test_a_timm_name_without_a_download(monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(MapetError, match=r"The weights of vit_tiny_patch16_224.* cannot be downloaded \(OSError\)"):
        load_from("vit_tiny_patch16_224")
    with pytest.raises(MapetError, match="timm publishes no weights of vit_small_patch16_18x2_224"):
        load_from("vit_small_patch16_18x2_224")


def test_a_timm_name_with_its_weights(monkeypatch):
    model = shaken(timm.create_model("vit_tiny_patch16_224", pretrained=False))
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: model)
    found = load_from("timm/vit_tiny_patch16_224")
    assert found.encoder.num_classes == 1000
    assert found.origin == "timm's timm/vit_tiny_patch16_224"


def test_wrong_heads_are_refused(images, tmp_path, capsys):
    torch.save(
        VisionTransformer(16, 4, embed_dim=192, depth=1, num_heads=12, num_classes=0).state_dict(), tmp_path / "a.pth"
    )
    options = ["--image-size", "16", "--patch-size", "4", "--vocab-size", "16", "--batch-size", "8"]
    command = ["pretrain", "--data", str(images), "--out", str(tmp_path / "run"), "--init", str(tmp_path / "a.pth")]
    assert main([*command, *options]) == 2
    line = capsys.readouterr().err
    assert "has depth 1 (the recipe's: 12): give --model custom --embed-dim 192 --depth 1 --num-heads 3" in line
    assert "3 heads assumed (width / 64; give --num-heads if it has others)" in line
    assert not (tmp_path / "run").exists()


def test_an_encoder_of_other_sizes_names_the_options(first, images, tmp_path):
    with pytest.raises(MapetError, match=r"has depth 2 \(the recipe's: 1\): give model custom"):
        mapet.pretrain(data=images, out=tmp_path / "run", init=first.folder, **{**SMALL, "depth": 1}, **TOKENS)


def test_from_must_exist(images, tmp_path):
    with pytest.raises(MapetError, match="does not exist"):
        mapet.pretrain(data=images, out=tmp_path / "run", init=tmp_path / "nowhere", **SMALL, **TOKENS)
