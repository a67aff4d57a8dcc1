"""Fine-tunings: all settings of a training with labels that change its result. As recipes, they are values."""

from dataclasses import dataclass, field
from math import inf
from typing import ClassVar

from mapet.config.checks import MODELS, POSITIONS, PRECISIONS, rate_rules
from mapet.config.recipe import FORBID_UNKNOWN, Optimization
from mapet.utils.errors import MapetError, nearest

RANDOM = "random"
REMODES = ("pixel", "rand", "const")


@dataclass(frozen=True)
class Backbone:
    """The encoder. Its architecture is that of FROM; all but the first two settings are for FROM = random."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_UNKNOWN
    image_size: int | None = None
    """Side of the images in pixels, positions interpolated to it; None: that of FROM, from random 224."""
    num_heads: int | None = None
    """Attention heads where an official-format FROM does not tell them (None: width / 64), or of a custom model."""
    model: str | None = None
    """vit_tiny, vit_small, vit_base, vit_large; or custom, with the next two and --num-heads."""
    embed_dim: int | None = None
    """Width of a custom model."""
    depth: int | None = None
    """Blocks of a custom model."""
    patch_size: int | None = None
    """Side of a patch in pixels; None: 16."""
    init_values: float | None = None
    """Start of the layer scale, 0 for none; None: 0.1."""
    pos_embed: str | None = None
    """Positions: learn, or sincos (a fixed table); None: learn."""


@dataclass(frozen=True)
class Augmentation:
    """What happens to training images, by timm and under its names."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_UNKNOWN
    scale: tuple[float, float] = (0.08, 1.0)
    """Random resized crops of this share of the area; with 1 1 and --ratio 1 1 the whole centred square."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width / height of the random resized crops."""
    hflip: float = 0.5
    """Share of the images that are mirrored."""
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    """RandAugment and its kin as timm spells them; None: colour jitter in its place."""
    color_jitter: float = 0.4
    """Strength of brightness, contrast and saturation jitter; without effect beside --auto-augment, as in timm."""
    reprob: float = 0.25
    """Share of the images in which rectangles are erased."""
    remode: str = "pixel"
    """What replaces them: pixel (noise), rand (one random colour) or const (the mean colour)."""
    recount: int = 1
    """Rectangles of an image, at most."""
    mixup: float = 0.8
    """Alpha of mixup; 0: none."""
    cutmix: float = 1.0
    """Alpha of cutmix; 0: none."""
    mixup_prob: float = 1.0
    """Share of the steps that mix images."""
    mixup_switch_prob: float = 0.5
    """Share of the mixing steps that take cutmix where there are both."""
    smoothing: float = 0.1
    """Label smoothing."""


def _optimization() -> Optimization:
    return Optimization(
        epochs=100, batch_size=256, base_lr=5e-4, min_lr=1e-6, warmup_lr=1e-6, warmup_epochs=5.0, clip_grad=None
    )


@dataclass(frozen=True)
class FinetuneRecipe:
    """Everything that decides a fine-tuning's result.

    The defaults are those of MAE's published code for ViT-B, but for three: 256 images a step in place of 1024, a
    warm-up from 1e-6 in place of 0, and tests on the whole centred square in place of 87.5 % of it.

    Raises:
        MapetError: on creation: a name or number that makes no sense.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_UNKNOWN
    start: str = ""
    """FROM: a run or export folder, an official-format checkpoint, or random; may come first, without --start."""
    data: str = ""
    """Labelled images: a folder with one sub-folder per class, or cifar10."""
    max_images: int | None = None
    """Use only so many of the training images, chosen at random; None: all."""
    fresh_head: bool = False
    """Draw the head anew where FROM has one."""
    drop_path: float = 0.1
    """Stochastic depth of the last block, growing linearly from 0."""
    layer_decay: float = 0.65
    """Factor of the learning rate from each block to the one below it; 1: none."""
    crop_pct: float = 1.0
    """Side of the centred square that is tested, as a share of the image's shorter side."""
    precision: str = "float32"
    """Of training: float32, or bfloat16 (mixed). Tests are in float32."""
    seed: int = 0
    """Of all chance."""
    backbone: Backbone = field(default_factory=Backbone)
    augmentation: Augmentation = field(default_factory=Augmentation)
    optimization: Optimization = field(default_factory=_optimization)

    def __post_init__(self) -> None:
        check(self)

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
    kind = "training from random" if t.start == RANDOM else "fine-tuning"
    named = ", ".join(f"{name} {value:g}" if value != "" else name for name, value in parts.items())
    return f"{kind}, {o.epochs:g} epochs of AdamW, batch {o.batch_size}, lr {t.lr:.3g}, {named}"


def check(t: FinetuneRecipe) -> None:
    """Refuse names that do not exist and numbers that make no sense.

    Raises:
        MapetError: the setting, its value and what would do.
    """
    b, a, o = t.backbone, t.augmentation, t.optimization
    for option, value, names in (
        ("model", b.model or MODELS[0], MODELS),
        ("pos-embed", b.pos_embed or POSITIONS[0], POSITIONS),
        ("remode", a.remode, REMODES),
        ("precision", t.precision, PRECISIONS),
    ):
        if value not in names:
            raise MapetError(f'There is no {option} "{value}".{nearest(value, names)}')
    counts = {"max-images": t.max_images, "batch-size": o.batch_size, "recount": a.recount}
    counts |= {name.replace("_", "-"): getattr(b, name) for name in ("image_size", "num_heads", "embed_dim", "depth")}
    counts |= {"patch-size": b.patch_size}
    shares = ("hflip", "color_jitter", "reprob", "mixup_prob", "mixup_switch_prob")
    for option, fits, wanted in (
        *((option, count is None or count >= 1, "at least 1") for option, count in counts.items()),
        *((name.replace("_", "-"), 0 <= getattr(a, name) <= 1, "0 … 1") for name in shares),
        ("scale", 0 < a.scale[0] <= a.scale[1] <= 1, "two numbers, 0 < low ≤ high ≤ 1"),
        ("ratio", 0 < a.ratio[0] <= a.ratio[1], "two numbers, 0 < low ≤ high"),
        ("mixup", 0 <= a.mixup < inf, "at least 0"),
        ("cutmix", 0 <= a.cutmix < inf, "at least 0"),
        ("smoothing", 0 <= a.smoothing < 1, "at least 0 and below 1"),
        ("init-values", b.init_values is None or b.init_values >= 0, "at least 0"),
        ("drop-path", 0 <= t.drop_path < 1, "at least 0 and below 1"),
        ("layer-decay", 0 < t.layer_decay <= 1, "above 0 and at most 1"),
        ("crop-pct", 0 < t.crop_pct <= 1, "above 0 and at most 1"),
        ("epochs", 0 < o.epochs < inf, "above 0"),
        *rate_rules(o),
        ("betas", all(0 <= beta < 1 for beta in o.betas), "two numbers of at least 0 and below 1"),
        ("ema-decay", o.ema_decay is None or 0 < o.ema_decay < 1, "between 0 and 1"),
    ):
        if not fits:
            raise MapetError(f"--{option} does not fit: it must be {wanted}.")
