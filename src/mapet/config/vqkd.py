"""All settings of a VQ-KD training that change its result."""

from dataclasses import dataclass
from math import inf
from typing import ClassVar

from mapet.config.checks import PRECISIONS, rate_rules
from mapet.config.recipe import FORBID_UNKNOWN
from mapet.utils.errors import MapetError, nearest


@dataclass(frozen=True)
class VQKDRecipe:
    """Everything that decides the result; the defaults are the published settings but for teacher and data.

    Raises:
        MapetError: on creation: a name or number that makes no sense.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_UNKNOWN
    data: str = ""
    """A folder of images, nested in any way, or cifar10; may come first, without --data."""
    max_images: int | None = None
    """Use only so many of the images, chosen at random; None: all."""
    teacher: str = "efficientnet_lite0"
    """Frozen teacher: a timm model's name; efficientnet_lite0, whose weights are installed already; pixels; or the
    folder of a run that was exported for timm."""
    teacher_stage: int | None = None
    """Its feature stage, counted from 0; None: the last (for efficientnet_lite0 the one of stride 16)."""
    teacher_output: str = "stage"
    """What of the stage: stage, as it is; norm, after a transformer's final norm; head, after norm and head (published:
    head, of CLIP's ViT-B/16)."""
    teacher_weights: str | None = None
    """A local file of the teacher's weights (.safetensors or .pth); None: those that timm publishes."""
    codes: int = 8192
    """Vocabulary."""
    code_dim: int = 32
    """Width of a code."""
    image_size: int = 224
    """Side of the tokenizer's images in pixels."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    embed_dim: int = 768
    """Width of encoder and decoder."""
    depth: int = 12
    """Blocks of the encoder."""
    num_heads: int = 12
    """Attention heads of encoder and decoder."""
    decoder_depth: int = 3
    """Blocks of the decoder; published are 1 and 3."""
    commitment: float = 1.0
    """Weight of the features' distance to their codes."""
    decay: float = 0.99
    """Of the moving averages of codes and usage; 0.9 suits a run of a few hundred steps."""
    restart: float = 0.05
    """Codes used less than this share of the mean are put where a feature is; 0: never, as published."""
    scale: tuple[float, float] | None = (0.08, 1.0)
    """Random resized crops of this share of the area; None: the whole centred square."""
    hflip: float = 0.5
    """Share of the images that are mirrored."""
    epochs: int = 100
    """Passes over the images."""
    batch_size: int = 512
    """Images a step, over all devices together."""
    lr: float | None = None
    """Largest learning rate; None: 5e-5 × batch_size / 128."""
    min_lr: float = 1e-5
    """Learning rate of the last step, unless the largest is below it."""
    warmup_lr: float = 1e-6
    """Learning rate of the first step."""
    warmup_epochs: float = 10.0
    """Epochs of linear warm-up."""
    weight_decay: float = 1e-4
    """AdamW's decay of weight matrices."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's decay rates of the two moments."""
    clip_grad: float | None = None
    """Largest L2 norm of the gradients; None: no clipping."""
    precision: str = "float32"
    """float32, or bfloat16 (mixed)."""
    seed: int = 0
    """Of all chance."""

    def __post_init__(self) -> None:
        check(self)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def peak(self) -> float:
        """The largest learning rate."""
        return 5e-5 * self.batch_size / 128 if self.lr is None else self.lr


def check(t: VQKDRecipe) -> None:
    """Refuse names that do not exist and numbers that make no sense.

    Raises:
        MapetError: the setting and what would do.
    """
    if t.precision not in PRECISIONS:
        raise MapetError(f'There is no precision "{t.precision}".{nearest(t.precision, PRECISIONS)}')
    low, high = t.scale or (1, 1)
    counts = ("code_dim", "patch_size", "embed_dim", "depth", "num_heads", "decoder_depth", "epochs", "batch_size")
    for option, fits, wanted in (
        *((name.replace("_", "-"), getattr(t, name) >= 1, "at least 1") for name in counts),
        ("max-images", t.max_images is None or t.max_images >= 1, "at least 1"),
        ("codes", 2 <= t.codes <= 65536, "2 … 65536"),
        ("patch-size", not t.image_size % max(1, t.patch_size), f"a divisor of --image-size {t.image_size}"),
        ("num-heads", not t.embed_dim % max(1, t.num_heads), f"a divisor of --embed-dim {t.embed_dim}"),
        ("commitment", 0 <= t.commitment < inf, "at least 0"),
        ("decay", 0 < t.decay < 1, "between 0 and 1"),
        ("restart", 0 <= t.restart < 0.5, "at least 0 and below 0.5"),
        ("scale", 0 < low <= high <= 1, "two numbers, 0 < low ≤ high ≤ 1"),
        ("hflip", 0 <= t.hflip <= 1, "0 … 1"),
        *rate_rules(t),
        ("betas", all(0 <= beta < 1 for beta in t.betas), "two numbers of at least 0 and below 1"),
    ):
        if not fits:
            raise MapetError(f"--{option} does not fit: it must be {wanted}.")
