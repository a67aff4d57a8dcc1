"""ImageNet-1k at 224 pixels with the published pre-training settings.

    mapet tokenize --data IMAGENET/train --out tokens --teacher resnet50x64_clip.openai --kmeans-init sample \\
        --restarts 5
    torchrun --nproc-per-node 8 -m mapet pretrain --recipe in1k-vit-base --data IMAGENET/train --tokens tokens \\
        --out runs/base --devices 8

Sources: the configuration files of aimagelab/MaPeT (commit 6d276c9). There the batch of 2048 is per process and the
number of processes is not told; it is the global batch here. Their learning rate moves once an epoch and ten epochs at
the lowest rate follow the 300; here it moves each step and ends after 300.

No accuracy stands here, because none was measured with this package yet.
"""

from mapet.config.recipe import Model, ModelName, Objective, Optimization, Recipe


def vit_base() -> Recipe:
    """ViT-B/16 by MaPeT, 300 epochs: 1,281,167 images / 2048 = 625 steps an epoch, 187,500 in all."""
    return Recipe(
        data="",
        color_jitter=0.4,
        precision="bfloat16",
        model=Model(name="vit_base", image_size=224, patch_size=16, init_values=0.1, drop_path=0.1),
        objective=Objective(name="mapet", mask_ratio=0.75),  # 147 of 196: all but 49 and CLS
        optimization=Optimization(
            epochs=300,
            batch_size=2048,
            lr=1.5e-3,  # absolute, for the batch of 2048
            min_lr=1e-5,
            warmup_lr=1e-6,
            warmup_epochs=10,
            weight_decay=0.05,
            betas=(0.9, 0.999),
            clip_grad=3.0,
        ),
    )


def vit_small() -> Recipe:
    """ViT-S/16 by MaPeT; settings as ``vit_base``."""
    return _sized("vit_small")


def vit_tiny() -> Recipe:
    """ViT-Ti/16 by MaPeT; settings as ``vit_base``."""
    return _sized("vit_tiny")


def _sized(name: ModelName) -> Recipe:
    from dataclasses import replace

    base = vit_base()
    return replace(base, model=replace(base.model, name=name))
