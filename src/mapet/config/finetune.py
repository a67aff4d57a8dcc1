"""Fine-tunings: all settings of a training with labels that change its result. As recipes, they are values."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from mapet.config.recipe import Interval, ModelName, Optimization, Positions, Training, require_intervals
from mapet.config.setting import Below1, Count, Option, PathText, Rate, Share, settings

RANDOM = "random"
AtMost1 = Annotated[float, Field(gt=0, le=1)]


@settings
class Backbone:
    """The encoder. Its architecture is that of FROM; all but the first two settings are for FROM = random."""

    image_size: Annotated[Count | None, Option(common=True)] = None
    """Side of the images in pixels, positions interpolated to it; None: that of FROM, from random 224."""
    num_heads: Count | None = None
    """Attention heads of an official-format FROM (None: width / 64) or of a custom model."""
    name: Annotated[ModelName | None, Option("model")] = None
    """vit_tiny, vit_small, vit_base, vit_large; or custom, with the next two and --num-heads."""
    embed_dim: Count | None = None
    """Width of a custom model."""
    depth: Count | None = None
    """Blocks of a custom model."""
    patch_size: Count | None = None
    """Side of a patch in pixels; None: 16."""
    init_values: Rate | None = None
    """Start of the layer scale, 0 for none; None: 0.1."""
    pos_embed: Positions | None = None
    """Positions: learn, or sincos (a fixed table); None: learn."""


@settings
class Augmentation:
    """What happens to training images, by timm and under its names."""

    scale: Interval = (0.08, 1.0)
    """Random resized crops of this share of the area; with 1 1 and --ratio 1 1 the whole centred square."""
    ratio: Interval = (3 / 4, 4 / 3)
    """Width / height of the random resized crops."""
    hflip: Share = 0.5
    """Share of the images that are mirrored."""
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    """RandAugment and its kin as timm spells them; None: colour jitter in its place."""
    color_jitter: Share = 0.4
    """Strength of brightness, contrast and saturation jitter; without effect beside --auto-augment, as in timm."""
    reprob: Share = 0.25
    """Share of the images in which rectangles are erased."""
    remode: Literal["pixel", "rand", "const"] = "pixel"
    """What replaces them: pixel (noise), rand (one random colour) or const (the mean colour)."""
    recount: Count = 1
    """Rectangles of an image, at most."""
    mixup: Rate = 0.8
    """Alpha of mixup; 0: none."""
    cutmix: Rate = 1.0
    """Alpha of cutmix; 0: none."""
    mixup_prob: Share = 1.0
    """Share of the steps that mix images."""
    mixup_switch_prob: Share = 0.5
    """Share of the mixing steps that take cutmix where there are both."""
    smoothing: Below1 = 0.1
    """Label smoothing."""

    def __post_init__(self) -> None:
        require_intervals(self.scale, self.ratio)


def _optimization() -> Optimization:
    return Optimization(
        epochs=100, batch_size=256, base_lr=5e-4, min_lr=1e-6, warmup_lr=1e-6, warmup_epochs=5.0, clip_grad=None
    )


@settings
class FinetuneRecipe(Training):
    """Everything that decides a fine-tuning's result.

    The defaults are those of MAE's published code for ViT-B, but for three: 256 images a step in place of 1024, a
    warm-up from 1e-6 in place of 0, and tests on the whole centred square in place of 87.5 % of it.

    Raises:
        MapetError: on creation: a setting that does not exist, or a value that is refused.
    """

    init: Annotated[PathText, Option(old=("start",), common=True)] = ""
    """FROM: a run or export folder, an official-format checkpoint, or random; may come first, without --init."""
    data: Annotated[PathText, Option(common=True)] = ""
    """Labelled images: a folder with one sub-folder per class, or cifar10."""
    fresh_head: bool = False
    """Draw the head anew where FROM has one."""
    drop_path: Below1 = 0.1
    """Stochastic depth of the last block, growing linearly from 0."""
    layer_decay: Annotated[AtMost1, Option(common=True)] = 0.65
    """Factor of the learning rate from each block to the one below it; 1: none."""
    crop_pct: AtMost1 = 1.0
    """Side of the centred square that is tested, as a share of the image's shorter side."""
    backbone: Backbone = field(default_factory=Backbone)
    augmentation: Augmentation = field(default_factory=Augmentation)
    optimization: Optimization = field(default_factory=_optimization)

    @property
    def lr(self) -> float:
        """The largest learning rate."""
        o = self.optimization
        return o.base_lr * o.batch_size / 256 if o.lr is None else o.lr

    @property
    def mixes(self) -> bool:
        """Whether images are mixed in pairs."""
        a = self.augmentation
        return a.mixup_prob > 0 and (a.mixup > 0 or a.cutmix > 0)


def protocol(t: FinetuneRecipe) -> str:
    """The name under which a fine-tuning's accuracy is reported: all that a table must tell."""
    a, o = t.augmentation, t.optimization
    parts = {
        "layer decay": t.layer_decay,
        "drop path": t.drop_path,
        "weight decay": o.weight_decay,
        a.auto_augment or "colour jitter": "" if a.auto_augment else a.color_jitter,
        "erasing": a.reprob,
        "mixup": a.mixup * (a.mixup_prob > 0),
        "cutmix": a.cutmix * (a.mixup_prob > 0),
        "smoothing": a.smoothing,
        "moving average": o.ema_decay or 0.0,
        "test crop": t.crop_pct,
    }
    kind = "training from random" if t.init == RANDOM else "fine-tuning"
    named = ", ".join(f"{name} {value:g}" if value != "" else name for name, value in parts.items())
    return f"{kind}, {o.epochs:g} epochs of AdamW, batch {o.batch_size}, lr {t.lr:.3g}, {named}"
