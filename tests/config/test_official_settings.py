"""Every published setting as a literal number, so that no recipe drifts from its source unseen.

Sources: MaPeT's are the files ``config/*.yaml`` of aimagelab/MaPeT, its arguments' defaults, and timm's where neither
sets a value; BEiT and BEiT v2: microsoft/unilm, ``beit`` and ``beit2``; CAE: lxtGH/CAE, ``scripts`` and
``tools/run_pretraining.py``; MAE: facebookresearch/mae, ``PRETRAIN.md`` and ``FINETUNE.md``; small MAE decoders:
wangsr126/MAE-Lite (arXiv 2205.14443).
"""

import pytest
import torch

from mapet.build.objectives import mae_decoder
from mapet.build.pretrain import build_encoder, build_objective
from mapet.config import recipes
from mapet.config.finetune import FinetuneRecipe
from mapet.config.flat import dotted
from mapet.config.recipe import Model, Objective, Optimization, Recipe
from mapet.config.recipes import finetune, segmentation
from mapet.config.segmentation import SegmentRecipe
from mapet.config.vqkd import VQKDRecipe
from mapet.interop.timm import arguments
from mapet.method.encoder import Classifier

# What no publication fixes. The published runs are in mixed float16.
OURS = {
    "data": "",
    "init": "",
    "tokens": None,
    "draft": None,
    "max_images": None,
    "max_pixels": 89_478_485,
    "precision": "bfloat16",
    "seed": 0,
}

MAPET_BASE = {
    "scale": None,  # the published crop of scale 1 and ratio 1 is the whole centred square
    "ratio": (3 / 4, 4 / 3),  # timm's, without effect here
    "hflip": 0.0,
    "color_jitter": 0.4,
    "model.name": "vit_base",
    "model.embed_dim": None,
    "model.depth": None,
    "model.num_heads": None,
    "model.image_size": 224,
    "model.patch_size": 16,
    "model.init_values": 0.1,
    "model.drop_path": 0.1,
    "model.pos_embed": "learn",
    "objective.name": "mapet",
    "objective.mask_ratio": 0.75,
    "objective.order": "uniform",
    "objective.groups": None,
    "objective.cls_layer": None,
    "objective.decoder_embed_dim": None,
    "objective.decoder_num_heads": None,
    "objective.decoder_depth": None,
    "objective.regressor_depth": 4,
    "objective.alignment_weight": 2.0,
    "objective.normalize_pixels": True,
    "optimization.epochs": 300,
    "optimization.batch_size": 2048,
    "optimization.lr": 1.5e-3,
    "optimization.base_lr": 1.875e-4,  # without effect beside lr
    "optimization.min_lr": 1e-5,
    "optimization.warmup_lr": 1e-6,
    "optimization.warmup_epochs": 10,
    "optimization.weight_decay": 0.05,
    "optimization.betas": (0.9, 0.999),
    "optimization.no_decay": ("pos_embed", "cls_token"),
    "optimization.clip_grad": 3.0,
    "optimization.ema_decay": None,
}
# BEiT and CAE begin their warm-up at 0 and not at 1e-6.
BEIT_BASE = {
    **MAPET_BASE,
    "scale": (0.08, 1.0),
    "hflip": 0.5,
    "objective.name": "mim",
    "objective.mask_ratio": 75 / 196,
    "objective.order": "blockwise",
    "optimization.epochs": 800,
}
PRETRAINING = {
    "in1k-vit-base": MAPET_BASE,
    "in1k-vit-small": {**MAPET_BASE, "model.name": "vit_small"},
    "in1k-vit-tiny": {**MAPET_BASE, "model.name": "vit_tiny"},
    "in1k-beit-vit-base": BEIT_BASE,
    "in1k-beit2-vit-base": {
        **BEIT_BASE,
        "scale": (0.2, 1.0),
        "model.drop_path": 0.0,
        "objective.cls_layer": 9,
        "optimization.epochs": 300,
        "optimization.betas": (0.9, 0.98),
    },
    "in1k-cae-vit-base": {
        **BEIT_BASE,
        "color_jitter": 0.0,
        "model.pos_embed": "sincos",
        "objective.name": "cae",
        "objective.mask_ratio": 0.5,
        "optimization.epochs": 300,
    },
    "in1k-mae-vit-base": {
        **MAPET_BASE,
        "scale": (0.2, 1.0),
        "hflip": 0.5,
        "color_jitter": 0.0,
        "model.init_values": None,
        "model.drop_path": 0.0,
        "model.pos_embed": "sincos",
        "objective.name": "mae",
        "optimization.epochs": 1600,
        "optimization.batch_size": 4096,
        "optimization.lr": None,
        "optimization.base_lr": 1.5e-4,
        "optimization.min_lr": 0.0,
        "optimization.warmup_lr": 0.0,
        "optimization.warmup_epochs": 40,
        "optimization.betas": (0.9, 0.95),
        "optimization.no_decay": (),
        "optimization.clip_grad": None,
    },
}

BACKBONE = ("image_size", "num_heads", "name", "embed_dim", "depth", "patch_size", "init_values", "pos_embed")
OURS_TUNED = {
    "init": "",
    "data": "",
    "max_images": None,
    "max_pixels": 89_478_485,
    "fresh_head": False,
    "precision": "bfloat16",
    "seed": 0,
}
OURS_TUNED |= {f"backbone.{name}": None for name in BACKBONE}  # all that FROM has of its own

TUNED_BASE = {
    "drop_path": 0.1,
    "layer_decay": 0.65,
    "crop_pct": 0.9,
    "augmentation.scale": (0.08, 1.0),
    "augmentation.ratio": (3 / 4, 4 / 3),
    "augmentation.hflip": 0.5,
    "augmentation.auto_augment": "rand-m9-mstd0.5",
    "augmentation.color_jitter": 0.4,  # timm's, without effect beside RandAugment
    "augmentation.reprob": 0.25,
    "augmentation.remode": "pixel",
    "augmentation.recount": 1,
    "augmentation.mixup": 0.8,
    "augmentation.cutmix": 1.0,
    "augmentation.mixup_prob": 1.0,
    "augmentation.mixup_switch_prob": 0.5,
    "augmentation.smoothing": 0.1,
    "optimization.epochs": 100,
    "optimization.batch_size": 512,
    "optimization.lr": 5e-4,
    "optimization.base_lr": 1.875e-4,  # without effect beside lr
    "optimization.min_lr": 1e-6,
    "optimization.warmup_lr": 1e-6,
    "optimization.warmup_epochs": 20,
    "optimization.weight_decay": 0.05,
    "optimization.betas": (0.9, 0.999),
    "optimization.no_decay": ("pos_embed", "cls_token"),
    "optimization.clip_grad": None,
    "optimization.ema_decay": None,
}
FINE_TUNING = {
    "in1k-finetune-vit-base": TUNED_BASE,
    "in1k-finetune-vit-small": {**TUNED_BASE, "optimization.epochs": 200, "optimization.lr": 5e-3},
    "in1k-finetune-vit-tiny": {
        **TUNED_BASE,
        "layer_decay": 1.0,
        "optimization.epochs": 300,
        "optimization.lr": 2.5e-4,
    },
}


def test_nothing_published_is_left_out():
    assert recipes.catalogue().keys() - PRETRAINING.keys() == {"cifar10-quickstart", "cifar10-vit-tiny"}
    assert finetune.catalogue().keys() - FINE_TUNING.keys() == {"cifar10-finetune"}


@pytest.mark.parametrize("name", PRETRAINING)
def test_pre_training(name):
    """All settings but those of a tokenizer, which is a folder of its own in every published setting."""
    found = dotted(recipes.catalogue()[name]())
    assert {key: value for key, value in found.items() if key[:10] != "tokenizer."} == OURS | PRETRAINING[name]


@pytest.mark.parametrize("name", FINE_TUNING)
def test_fine_tuning(name):
    assert dotted(finetune.catalogue()[name]()) == OURS_TUNED | FINE_TUNING[name]


OURS_SEGMENTED = {"init": "", "data": "", "max_images": None, "max_pixels": 89_478_485, "seed": 0}
OURS_SEGMENTED |= {f"backbone.{name}": None for name in BACKBONE if name != "image_size"}
ADE20K_BASE = {  # UPerNet over ViT-B/16, crops of 512, 160,000 steps of 16
    "backbone.image_size": 512,
    "precision": "bfloat16",
    "reduce_zero_label": True,
    "drop_path": 0.1,
    "layer_decay": 0.65,
    "stride": 341,
    "decoder.channels": 768,
    "decoder.auxiliary_channels": 256,
    "decoder.auxiliary_weight": 0.4,
    "augmentation.scale": (0.5, 2.0),
    "augmentation.hflip": 0.5,
    "augmentation.photometric": True,
    "augmentation.cat_max_ratio": 0.75,
    "optimization.epochs": 160_000 / (20_210 // 16),
    "optimization.batch_size": 16,
    "optimization.lr": 1e-4,
    "optimization.base_lr": 1.875e-4,  # without effect beside lr
    "optimization.min_lr": 0.0,
    "optimization.warmup_lr": 1e-10,
    "optimization.warmup_epochs": 1_500 / (20_210 // 16),
    "optimization.weight_decay": 0.05,
    "optimization.betas": (0.9, 0.999),
    "optimization.no_decay": ("pos_embed", "cls_token"),
    "optimization.clip_grad": None,
    "optimization.ema_decay": None,
}
BEIT2 = {"layer_decay": 0.75, "drop_path": 0.15, "optimization.lr": 5e-5, "optimization.warmup_lr": 5e-11}
SEGMENTATION = {
    "ade20k-mae-vit-base": {},
    "ade20k-cae-vit-base": {},  # after 1,600 epochs
    "ade20k-beit-vit-base": {"optimization.lr": 7e-4, "optimization.warmup_lr": 7e-10},
    "ade20k-beit2-vit-base": BEIT2,
}


def test_no_segmentation_recipe_is_left_out():
    assert segmentation.catalogue().keys() == SEGMENTATION.keys()


@pytest.mark.parametrize("name", SEGMENTATION)
def test_segmentation(name):
    found = dotted(segmentation.catalogue()[name]())
    expected = OURS_SEGMENTED | ADE20K_BASE | SEGMENTATION[name]
    rate = pytest.approx(expected.pop("optimization.warmup_lr"), rel=1e-12)
    assert found == expected | {"optimization.warmup_lr": rate}


def test_the_defaults_of_segmentation_are_those_of_the_base_model():
    """But for the crop, which is FROM's, a smaller head, 100 epochs, and a warm-up of one, which begins at 0."""
    assert dotted(SegmentRecipe()) == {
        **OURS_SEGMENTED,
        **ADE20K_BASE,
        "backbone.image_size": None,
        "precision": "float32",
        "stride": None,
        "decoder.channels": 512,
        "optimization.epochs": 100,
        "optimization.lr": None,
        "optimization.base_lr": 1.6e-3,
        "optimization.warmup_lr": 0.0,
        "optimization.warmup_epochs": 1,
    }
    assert SegmentRecipe().lr == ADE20K_BASE["optimization.lr"]


def test_the_defaults_of_pre_training_are_mapet_s_but_for_a_smaller_batch():
    found = dotted(Optimization())
    published = {name: MAPET_BASE[f"optimization.{name}"] for name in found}
    assert found == published | {"batch_size": 256, "lr": None}
    assert Recipe(optimization=Optimization(batch_size=2048)).lr == 1.5e-3


def test_the_defaults_of_fine_tuning_are_mae_s():
    """But for the batch of 1024, the test crop of 0.875, and the warm-up, which begins at 0."""
    assert dotted(FinetuneRecipe()) == {
        **OURS_TUNED,
        **TUNED_BASE,
        "precision": "float32",
        "crop_pct": 1.0,
        "augmentation.auto_augment": "rand-m9-mstd0.5-inc1",
        "optimization.batch_size": 256,
        "optimization.lr": None,
        "optimization.base_lr": 5e-4,
        "optimization.warmup_epochs": 5,
    }
    assert FinetuneRecipe(optimization=Optimization(base_lr=5e-4, batch_size=1024)).lr == 2e-3


def test_the_defaults_of_vq_kd_are_beit_2_s():
    """But for the teacher, codes that start again where they are not used, and the warm-up, which begins at 0."""
    ours = {
        "data": "",
        "max_images": None,
        "max_pixels": 89_478_485,
        "precision": "float32",
        "seed": 0,
        "restart": 0.05,
        "warmup_lr": 1e-6,
    }
    ours |= {"teacher": "efficientnet_lite0", "teacher_stage": None, "teacher_output": "stage", "teacher_weights": None}
    assert dotted(VQKDRecipe()) == {
        **ours,
        "vocab_size": 8192,
        "code_dim": 32,
        "image_size": 224,
        "patch_size": 16,
        "embed_dim": 768,
        "depth": 12,
        "num_heads": 12,
        "decoder_depth": 3,
        "commitment": 1.0,
        "decay": 0.99,
        "scale": (0.08, 1.0),
        "hflip": 0.5,
        "epochs": 100,
        "batch_size": 512,
        "lr": None,
        "min_lr": 1e-5,
        "warmup_epochs": 10,
        "weight_decay": 1e-4,
        "betas": (0.9, 0.99),
        "clip_grad": None,
    }
    assert VQKDRecipe().peak == 2e-4


@pytest.mark.parametrize(
    ("name", "hidden", "lr", "parts"),
    [
        ("in1k-vit-base", 147, 1.5e-3, {"blocks": 12, "cls_blocks": 0}),
        ("in1k-beit-vit-base", 75, 1.5e-3, {"blocks": 12, "cls_blocks": 0}),
        ("in1k-beit2-vit-base", 75, 1.5e-3, {"blocks": 12, "cls_blocks": 2}),
        ("in1k-cae-vit-base", 98, 1.5e-3, {"regressor_blocks": 4, "decoder_blocks": 4}),
        ("in1k-mae-vit-base", 147, 2.4e-3, {"decoder_blocks": 8}),
    ],
)
def test_hidden_patches_learning_rate_and_parts_that_follow(name, hidden, lr, parts):
    recipe = recipes.catalogue()[name]()
    with torch.device("meta"):
        objective = build_objective(recipe, 8192)
    assert recipe.num_masked == hidden
    assert recipe.lr == pytest.approx(lr, rel=1e-12)
    for part, count in parts.items():
        owner = objective.encoder if part == "blocks" else objective
        assert len(getattr(owner, part, ())) == count


@pytest.mark.parametrize(
    ("size", "shape", "before", "after"),
    [
        ("tiny", (192, 12, 3), 7.11, 5.72),
        ("small", (384, 12, 6), 24.83, 22.06),
        ("base", (768, 12, 12), 92.12, 86.59),
    ],
)
def test_sizes_and_million_parameters(size, shape, before, after):
    """Of MaPeT's published code, with 8192 tokens in pre-training and 1000 classes after fine-tuning."""
    recipe = recipes.catalogue()[f"in1k-vit-{size}"]()
    with torch.device("meta"):
        encoder, objective = build_encoder(recipe), build_objective(recipe, 8192)
        classifier = Classifier(**{**arguments(encoder), "global_pool": "avg", "num_classes": 1000})
    assert (encoder.embed_dim, len(encoder.blocks), encoder.num_heads) == shape
    for model, millions in ((objective, before), (classifier, after)):
        assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("model", "width", "depth", "heads"),
    [("vit_tiny", 96, 1, 3), ("vit_small", 192, 1, 6), ("vit_base", 512, 8, 16), ("vit_large", 512, 8, 16)],
)
def test_mae_s_decoders(model, width, depth, heads):
    recipe = Recipe(model=Model(name=model), objective=Objective(name="mae"))
    assert mae_decoder(recipe) == {"decoder_embed_dim": width, "decoder_depth": depth, "decoder_num_heads": heads}


def test_cae_s_two_parts_are_as_wide_as_its_encoder():
    with torch.device("meta"):
        cae = build_objective(recipes.catalogue()["in1k-cae-vit-base"](), 8192)
    blocks = (*cae.regressor_blocks, *cae.decoder_blocks)
    assert {block.mlp.fc1.in_features for block in blocks} == {768}
    assert {block.attn.heads for block in cae.decoder_blocks} == {12}
