"""BEiT, BEiT v2, CAE and MAE on ImageNet-1k at 224 pixels: the official pre-training settings of each for ViT-B/16.

    torchrun --nproc-per-node 8 -m mapet pretrain --recipe in1k-mae-vit-base --data IMAGENET/train --out runs/mae \\
        --devices 8
    torchrun --nproc-per-node 8 -m mapet pretrain --recipe in1k-cae-vit-base --data IMAGENET/train --out runs/cae \\
        --devices 8 --tokenizer DALLE

They are for repeating each method as its authors ran it; ``mapet compare`` puts the objectives under one setting. Crops
are random, so that tokens are made as the images come, by the tokenizer that ``mapet tokenizer import`` has written:
DALL-E's for BEiT and CAE, VQ-KD for BEiT v2.

All encoders start as this package's do, which is timm's way: MAE draws its linear layers Xavier-uniform, and CAE and
BEiT divide the weights of a block's two output layers by √(2 · its number).

No accuracy stands here, because none was measured with this package yet. The published ones, after fine-tuning on
ImageNet-1k: BEiT 83.2 % (800 epochs), BEiT v2 85.0 % (300), CAE 83.6 % (300), MAE 83.6 % (1600).
"""

from dataclasses import replace

from mapet.config.recipe import Model, Objective, Optimization, Recipe

BEIT = Objective(name="mim", mask_ratio=75 / 196, order="blockwise")


def beit_vit_base() -> Recipe:
    """BEiT, 800 epochs of 625 steps: microsoft/unilm, ``beit``.

    Learned positions stand in the place of the relative position bias, which its authors value at 0.2 points. BEiT
    stops short of 75 patches where no further rectangle fits; here it is always 75.
    """
    return Recipe(
        scale=(0.08, 1.0),
        hflip=0.5,
        color_jitter=0.4,
        precision="bfloat16",
        model=Model(name="vit_base", image_size=224, patch_size=16, init_values=0.1, drop_path=0.1),
        objective=BEIT,
        optimization=Optimization(
            epochs=800,
            batch_size=2048,
            lr=1.5e-3,
            min_lr=1e-5,
            warmup_lr=1e-6,
            warmup_epochs=10,
            weight_decay=0.05,
            betas=(0.9, 0.999),
            clip_grad=3.0,
        ),
    )


def beit2_vit_base() -> Recipe:
    """BEiT v2, 300 epochs of 625 steps: microsoft/unilm, ``beit2``.

    The settings for 300 epochs: no stochastic depth and a second moment of 0.98; for 1600 epochs they are 0.1 and
    0.999. Positions and rectangles as in ``beit_vit_base``. The second prediction's two blocks start as the encoder's.
    """
    base = beit_vit_base()
    return replace(
        base,
        scale=(0.2, 1.0),
        model=replace(base.model, drop_path=0.0),
        objective=replace(BEIT, cls_layer=9),
        optimization=replace(base.optimization, epochs=300, betas=(0.9, 0.98)),
    )


def cae_vit_base() -> Recipe:
    """CAE, 300 epochs of 625 steps: lxtGH/CAE; 98 of 196 patches hidden by rectangles.

    Warm-up is 10 epochs for 300, 20 for 800 and 40 for 1600. The teacher is the encoder of the same step, not of the
    one before.
    """
    base = beit_vit_base()
    return replace(
        base,
        color_jitter=0.0,
        model=replace(base.model, pos_embed="sincos"),
        objective=Objective(name="cae", mask_ratio=0.5, order="blockwise"),
        optimization=replace(base.optimization, epochs=300),
    )


def mae_vit_base() -> Recipe:
    """MAE, 1600 epochs of 1,281,167 / 4096 = 312 steps: facebookresearch/mae; no tokens, no jitter, no clipping.

    All matrices decay, and the class token with them. For 800 epochs the rest is the same.
    """
    return Recipe(
        scale=(0.2, 1.0),
        hflip=0.5,
        color_jitter=0.0,
        precision="bfloat16",
        model=Model(
            name="vit_base", image_size=224, patch_size=16, init_values=None, drop_path=0.0, pos_embed="sincos"
        ),
        objective=Objective(name="mae", mask_ratio=0.75),  # 147 of 196
        optimization=Optimization(
            epochs=1600,
            batch_size=4096,
            base_lr=1.5e-4,  # × 4096 / 256 = 2.4e-3
            min_lr=0.0,
            warmup_lr=0.0,
            warmup_epochs=40,
            weight_decay=0.05,
            betas=(0.9, 0.95),
            no_decay=(),
            clip_grad=None,
        ),
    )
