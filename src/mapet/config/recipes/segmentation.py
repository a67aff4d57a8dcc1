"""Named trainings of UPerNet on ADE20K: the published settings of BEiT, BEiT v2, CAE and MAE for ViT-B/16.

    torchrun --nproc-per-node 8 -m mapet segment runs/base --recipe ade20k-mae-vit-base --data ADE20K \\
        --out runs/base-ade20k --devices 8

FROM must be a ViT-B/16. Common to all: crops of 512 pixels of images scaled by 0.5 to 2, a batch of 16, 160,000 steps =
126.7 epochs of 20,210 images in 1,263 steps, 1,500 of them warm-up, a head of 768 channels, windows every 341 pixels.
What differs from the published settings:

- absolute positions, interpolated; BEiT, BEiT v2 and CAE train with relative position bias
- float32 or bfloat16, where they use float16
- the polynomial begins at the end of the warm-up, and not at the first step

Users of the published code report a spread of about half a point of mIoU, and three points less on one GPU. mIoU: not
measured with this package yet.
"""

from collections.abc import Callable

from mapet.config.finetune import Backbone
from mapet.config.segmentation import Decoder, SegmentRecipe
from mapet.config.training import Optimization
from mapet.utils.errors import MapetError, nearest

STEPS_PER_EPOCH = 20_210 // 16


def _ade20k(lr: float, layer_decay: float = 0.65, drop_path: float = 0.1) -> SegmentRecipe:
    return SegmentRecipe(
        layer_decay=layer_decay,
        drop_path=drop_path,
        stride=341,
        precision="bfloat16",
        backbone=Backbone(image_size=512),
        decoder=Decoder(channels=768),
        optimization=Optimization(
            epochs=160_000 / STEPS_PER_EPOCH,
            batch_size=16,
            lr=lr,
            min_lr=0.0,
            warmup_lr=1e-6 * lr,
            warmup_epochs=1_500 / STEPS_PER_EPOCH,
            weight_decay=0.05,
            betas=(0.9, 0.999),
            clip_grad=None,
        ),
    )


def beit_vit_base() -> SegmentRecipe:
    """BEiT, pre-trained on ImageNet-1k: learning rate 7e-4."""
    return _ade20k(7e-4)


def beit2_vit_base() -> SegmentRecipe:
    """BEiT v2: learning rate 5e-5, layer decay 0.75, drop path 0.15; published mIoU 53.1."""
    return _ade20k(5e-5, layer_decay=0.75, drop_path=0.15)


def cae_vit_base() -> SegmentRecipe:
    """CAE, pre-trained for 1,600 epochs: learning rate 1e-4; 2e-4 after 800 epochs and 3e-4 after 300."""
    return _ade20k(1e-4)


def mae_vit_base() -> SegmentRecipe:
    """MAE: learning rate 1e-4."""
    return _ade20k(1e-4)


def catalogue() -> dict[str, Callable[[], SegmentRecipe]]:
    """All segmentation recipes by name."""
    methods = {"beit": beit_vit_base, "beit2": beit2_vit_base, "cae": cae_vit_base, "mae": mae_vit_base}
    return {f"ade20k-{method}-vit-base": make for method, make in methods.items()}


def find(name: str) -> SegmentRecipe:
    """The segmentation recipe ``name``.

    Raises:
        MapetError: there is none.
    """
    known = catalogue()
    if name not in known:
        raise MapetError(f'There is no segmentation recipe "{name}" (a file would end in .yaml).{nearest(name, known)}')
    return known[name]()
