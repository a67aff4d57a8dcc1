"""Named fine-tunings: ImageNet-1k with the published settings, and CIFAR-10.

    torchrun --nproc-per-node 8 -m mapet finetune runs/base --recipe in1k-finetune-vit-base --data IMAGENET \\
        --out runs/base-ft --devices 8

FROM must have the size that the recipe names. Sources of the ImageNet settings: the fine-tuning configuration files of
aimagelab/MaPeT (commit 6d276c9). Doubtful values are kept as published; how to change them is given with each:

- there the batch of 512 is per process and the number of processes is not given; here it is the global batch, so the
  learning rates, which are absolute, were tuned for an unknown batch
- there ten epochs at the lowest rate follow the 100, 200 or 300, by a default of timm, and the rate changes once per
  epoch; here it changes every step and training ends with the stated epochs
- the test crop is 0.9 of the short side, although pre-training shows the whole centred square (``--crop-pct 1``)
- RandAugment is rand-m9-mstd0.5, without the "increasing" magnitudes of BEiT and MAE: ``--auto-augment
  rand-m9-mstd0.5-inc1``
- the small model's learning rate is ten times the base model's: see ``vit_small``

Accuracy: not measured with this package yet.
"""

from collections.abc import Callable
from dataclasses import replace

from mapet.config.finetune import Augmentation, FinetuneRecipe
from mapet.config.recipe import Optimization
from mapet.utils.errors import MapetError, nearest


def vit_base() -> FinetuneRecipe:
    """ViT-B/16, 100 epochs: 1,281,167 images / 512 = 2,502 steps per epoch, 250,200 in total."""
    return FinetuneRecipe(
        drop_path=0.1,
        layer_decay=0.65,
        crop_pct=0.9,
        precision="bfloat16",
        augmentation=Augmentation(
            scale=(0.08, 1.0),
            hflip=0.5,
            auto_augment="rand-m9-mstd0.5",
            reprob=0.25,
            mixup=0.8,
            cutmix=1.0,
            smoothing=0.1,
        ),
        optimization=Optimization(
            epochs=100,
            batch_size=512,
            lr=5e-4,  # absolute
            min_lr=1e-6,
            warmup_lr=1e-6,
            warmup_epochs=20,
            weight_decay=0.05,
            betas=(0.9, 0.999),
            clip_grad=None,
        ),
    )


def vit_small() -> FinetuneRecipe:
    """ViT-S/16, 200 epochs, 500,400 steps; else as ``vit_base``.

    Its published learning rate of 5e-3 is ten times the base model's and twenty times the tiny one's: probably a
    mistake for 5e-4 (``--lr 5e-4``), but kept as published.
    """
    return _changed(epochs=200, lr=5e-3)


def vit_tiny() -> FinetuneRecipe:
    """ViT-Ti/16, 300 epochs, 750,600 steps, without layer decay; else as ``vit_base``."""
    return replace(_changed(epochs=300, lr=2.5e-4), layer_decay=1.0)


def cifar10() -> FinetuneRecipe:
    """An encoder of 32 × 32 images, 100 epochs: 50,000 / 256 = 195 steps per epoch, 19,500 in total.

    Weaker augmentation than on ImageNet, because a crop of a few pixels shows nothing: crops of at least a third of the
    image, erasing in a tenth of the images, layer decay 0.75. Accuracy: not measured yet.
    """
    return FinetuneRecipe(
        data="cifar10",
        layer_decay=0.75,
        augmentation=Augmentation(scale=(0.33, 1.0), reprob=0.1),
        optimization=Optimization(
            epochs=100,
            batch_size=256,
            lr=1e-3,
            min_lr=1e-6,
            warmup_epochs=5,
            clip_grad=None,
        ),
    )


def _changed(*, epochs: int, lr: float) -> FinetuneRecipe:
    base = vit_base()
    return replace(base, optimization=replace(base.optimization, epochs=epochs, lr=lr))


def catalogue() -> dict[str, Callable[[], FinetuneRecipe]]:
    """All fine-tuning recipes by name."""
    sizes = {"tiny": vit_tiny, "small": vit_small, "base": vit_base}
    return {"cifar10-finetune": cifar10, **{f"in1k-finetune-vit-{size}": make for size, make in sizes.items()}}


def find(name: str) -> FinetuneRecipe:
    """The fine-tuning recipe ``name``.

    Raises:
        MapetError: there is none.
    """
    known = catalogue()
    if name not in known:
        raise MapetError(f'There is no fine-tuning recipe "{name}" (a file would end in .yaml).{nearest(name, known)}')
    return known[name]()
