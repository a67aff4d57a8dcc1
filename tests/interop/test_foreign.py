"""Checkpoints of other models: named, with the reason and a way out; those that are plain are read."""

import shutil

import pytest
import timm
import torch
from torchvision import models

import mapet
from mapet.api.encoders import load_from
from mapet.interop.checkpoint import open_checkpoint
from mapet.interop.foreign import require_known
from mapet.utils.errors import MapetError

TINY = {"img_size": 32, "embed_dim": 64, "depth": 1, "num_heads": 1}
SIZES = {"image_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
SMALL = {"model": "custom", **SIZES, "batch_size": 16, "epochs": 1, "warmup_epochs": 0, "accelerator": "cpu"}


def saved(path, weights):
    torch.save(weights, path)
    return path


def timm_model(name, **options):
    return lambda: timm.create_model(name, pretrained=False, **options).state_dict()


def hugging_face(kind, **options):
    def weights():
        import transformers

        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        config = getattr(transformers, f"{kind}Config")(**sizes, image_size=32, patch_size=16, **options)
        return getattr(transformers, f"{kind}Model")(config).state_dict()

    return weights


def open_clip():
    names = ("class_embedding", "positional_embedding", "conv1.weight", "ln_pre.weight")
    return {f"visual.{name}": torch.zeros(2) for name in (*names, "transformer.resblocks.0.attn.in_proj_weight")}


FOREIGN = {
    "Swin": timm_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1), embed_dim=32, num_heads=(1, 1, 1, 1)),
    "Swin (torchvision)": lambda: models.swin_t().state_dict(),
    "BEiT with a relative position bias": timm_model("beit_base_patch16_224", **TINY),
    "DINOv2 with registers": timm_model("vit_small_patch14_reg4_dinov2", **TINY | {"img_size": 28}),
    "DINOv2's ViT-g or EVA": lambda: {"mask_token": torch.zeros(1, 8), "blocks.0.mlp.w12.weight": torch.zeros(2, 8)},
    "DINOv3 or EVA-02": lambda: {"storage_tokens": torch.zeros(1, 4, 8), "rope_embed.periods": torch.zeros(2)},
    "CLIP": open_clip,
    "CLIP of transformers": hugging_face("CLIPVision"),
    "transformers' ViT": hugging_face("ViT"),
    "ResNet": lambda: models.resnet18().state_dict(),
    "ConvNeXt": timm_model("convnext_atto"),
    "EfficientNet": timm_model("efficientnet_lite0"),
    "a distilled DeiT": timm_model("deit_tiny_distilled_patch16_224", **TINY),
    "torchvision's ViT": lambda: {"class_token": torch.zeros(1), "conv_proj.weight": torch.zeros(1)},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_models_are_named(tmp_path, name):
    weights = FOREIGN[name]()
    path = saved(tmp_path / "some.pth", {"model": weights})
    with pytest.raises(MapetError) as refused:
        open_checkpoint(path)
    text = str(refused.value)
    assert f"looks like {name.partition(' (')[0]}, which cannot be used, as " in text
    assert text.endswith(f"It holds {', '.join(list(weights)[:3])}{' …' if len(weights) > 3 else ''}.")
    assert "\n" not in text


def test_unknown_names_are_listed(tmp_path):
    path = saved(tmp_path / "some.pth", {"encoder.a": torch.zeros(1), "encoder.b": torch.zeros(1)})
    with pytest.raises(MapetError, match=r"of a known layout. It holds encoder.a, encoder.b\.$"):
        open_checkpoint(path)
    path = saved(tmp_path / "jepa.pth", {"predictor": {"a": torch.zeros(1)}, "target_encoder": {"a": torch.zeros(1)}})
    with pytest.raises(MapetError, match=r"does not hold a state dict \(it holds predictor, target_encoder\)"):
        open_checkpoint(path)


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone.", "model."])
def test_dino_without_registers_is_a_plain_transformer(tmp_path, prefix):
    """DINO, and DINOv2 with its mask token, which only its training reads."""
    model = timm.create_model(
        "vit_small_patch14_dinov2", pretrained=False, num_classes=0, **TINY | {"img_size": 28}
    ).eval()
    weights = {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}
    path = saved(tmp_path / "dino.pth", {"teacher": {**weights, f"{prefix}mask_token": torch.zeros(1, 64)}})
    encoder, _ = open_checkpoint(path)
    images = torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        assert torch.allclose(encoder.eval()(images), model.forward_features(images), atol=1e-5)


def test_no_model_that_is_read_looks_foreign():
    """A published layout whose names were in the table could not be read any more."""
    names = ["cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "norm.weight"]
    extra = ["mask_positional_token", "lm_head.weight", "decoder_embed.weight", "pretext_neck.head.weight"]
    extra += ["blocks.0.attn.q.weight", "blocks.0.gamma_1", "fc_norm.weight", "head.weight", "teacher.cls_token"]
    require_known("some.pth", [*names, *extra, *(f"encoder.{name}" for name in names)])


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    return mapet.pretrain(data=images, out=out, objective="mae", save_every=1, **SMALL)


@pytest.mark.parametrize("name", ["last", "previous", "step-00000002"])
def test_a_checkpoint_in_its_run_is_an_encoder(run, images, name, tmp_path):
    path = run.checkpoints / f"{name}.safetensors"
    found = load_from(path)
    step = int(name[-1]) if "step" in name else 3 - (name == "previous")
    assert (found.step, found.run.folder) == (step, run.folder)
    same = load_from(run.folder).encoder.state_dict()
    equal = [torch.equal(tensor, same[key]) for key, tensor in found.encoder.state_dict().items()]
    assert all(equal) == (name == "last")
    begun = mapet.pretrain(data=images, out=tmp_path / "new", objective="mae", init=path, **SMALL)
    assert f"mae after {step} steps" in begun.log.read_text()
    with pytest.raises(MapetError, match=r"num_heads is fixed by .*run; remove it"):
        load_from(path, num_heads=2)


def test_a_checkpoint_of_a_classifier_and_a_damaged_one(run, images, tmp_path):
    tuned = mapet.finetune(
        run.folder, images, tmp_path / "tuned", batch_size=16, epochs=1, warmup_epochs=0, mixup=0, cutmix=0
    )
    assert load_from(tuned.last).encoder.num_classes == 2
    assert mapet.export(tuned.last) == tuned.folder / "export" / "timm"
    damaged = shutil.copytree(run.folder, tmp_path / "damaged")
    content = bytearray((damaged / "checkpoints" / "step-00000001.safetensors").read_bytes())
    content[-3] ^= 64
    (damaged / "checkpoints" / "step-00000001.safetensors").write_bytes(content)
    with pytest.raises(MapetError, match=r"step-00000001.safetensors"):
        load_from(damaged / "checkpoints" / "step-00000001.safetensors")


def test_a_checkpoint_outside_its_run_and_a_comparison_are_one_line(run, tmp_path):
    alone = shutil.copy(run.last, tmp_path / "last.safetensors")
    with pytest.raises(MapetError, match=r"a checkpoint of mapet outside its run.*: give the run's folder, or"):
        load_from(alone)
    (tmp_path / "compare.yaml").touch()
    with pytest.raises(MapetError, match=r"holds a comparison: give one of the folders in .*runs\."):
        load_from(tmp_path)
