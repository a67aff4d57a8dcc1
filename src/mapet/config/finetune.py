"""Fine-tuning recipes: all settings of a supervised training that change its result."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from mapet.config.recipe import ModelName, Positions
from mapet.config.setting import Below1, Count, Interval, Option, PathText, Rate, Share, require_intervals, settings
from mapet.config.training import Optimization, Training

RANDOM = "random"
AtMost1 = Annotated[float, Field(gt=0, le=1)]


@settings
class Backbone:
    """The encoder. FROM determines its architecture; all but the first two settings are for FROM = random."""

    image_size: Annotated[Count | None, Option(common=True)] = None
    """Side of the input images in pixels; positions are interpolated. None: that of FROM, 224 for random."""
    num_heads: Count | None = None
    """Attention heads of an official-format FROM (None: width / 64) or of a custom model."""
    name: Annotated[ModelName | None, Option("model")] = None
    """Size of the encoder for random; custom needs --embed-dim, --depth and --num-heads."""
    embed_dim: Count | None = None
    """Width of a custom model."""
    depth: Count | None = None
    """Blocks of a custom model."""
    patch_size: Count | None = None
    """Side of a patch in pixels; None: 16."""
    init_values: Rate | None = None
    """Initial value of LayerScale, 0: no LayerScale; None: 0.1."""
    pos_embed: Positions | None = None
    """Position embedding: learned, or fixed sine-cosine; None: learn."""


@settings
class Augmentation:
    """Augmentation of the training images, with the names of timm."""

    scale: Interval = (0.08, 1.0)
    """Area of random resized crops, as fractions of the image; 1 1 with --ratio 1 1 is the whole centred square."""
    ratio: Interval = (3 / 4, 4 / 3)
    """Aspect ratio of random resized crops, width / height."""
    hflip: Share = 0.5
    """Probability of a horizontal flip."""
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    """RandAugment, AutoAugment or AugMix policy, as timm spells it; None: color jitter instead."""
    color_jitter: Share = 0.4
    """Strength of brightness, contrast and saturation jitter; without effect with --auto-augment, as in timm."""
    reprob: Share = 0.25
    """Probability of random erasing."""
    remode: Literal["pixel", "rand", "const"] = "pixel"
    """Content of erased rectangles: pixel (noise), rand (one random color) or const (the mean color)."""
    recount: Count = 1
    """Largest number of erased rectangles per image."""
    mixup: Rate = 0.8
    """Alpha of mixup; 0: off."""
    cutmix: Rate = 1.0
    """Alpha of cutmix; 0: off."""
    mixup_prob: Share = 1.0
    """Probability that a step uses mixup or cutmix."""
    mixup_switch_prob: Share = 0.5
    """Probability of cutmix instead of mixup if both are on."""
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
    """All settings that determine the result of a fine-tuning.

    The defaults are those of MAE's published code for ViT-B, with three exceptions: a batch of 256 instead of 1024, a
    warm-up from 1e-6 instead of 0, and tests on the whole centred square instead of 87.5 % of it.

    Raises:
        MapetError: on creation: a setting that does not exist, or a value that is refused.
    """

    init: Annotated[PathText, Option(old=("start",), common=True)] = ""
    """FROM: a run, an export, an official-format checkpoint, a timm model or random; may come first, without --init."""
    data: Annotated[PathText, Option(common=True)] = ""
    """Labelled images: a folder with one subfolder per class, or cifar10."""
    fresh_head: bool = False
    """Replace the classification head of FROM by a new one."""
    drop_path: Below1 = 0.1
    """Drop rate of the last block in stochastic depth; the rate grows linearly from 0."""
    layer_decay: Annotated[AtMost1, Option(common=True)] = 0.65
    """Factor of the learning rate from each block to the one below it; 1: no decay."""
    crop_pct: AtMost1 = 1.0
    """Center crop of test images, as a fraction of the shorter side."""
    backbone: Backbone = field(default_factory=Backbone)
    augmentation: Augmentation = field(default_factory=Augmentation)
    optimization: Optimization = field(default_factory=_optimization)

    @property
    def lr(self) -> float:
        """The peak learning rate."""
        o = self.optimization
        return o.base_lr * o.batch_size / 256 if o.lr is None else o.lr

    @property
    def mixes(self) -> bool:
        """Whether images are mixed in pairs."""
        a = self.augmentation
        return a.mixup_prob > 0 and (a.mixup > 0 or a.cutmix > 0)


def protocol(t: FinetuneRecipe) -> str:
    """The description under which the accuracy of a fine-tuning is reported."""
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
