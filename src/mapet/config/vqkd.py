"""All settings of a VQ-KD training that change its result."""

from typing import Annotated, Literal

from pydantic import Field

from mapet.config.recipe import Betas, Interval, Training, require_intervals
from mapet.config.setting import Count, Option, PathText, Rate, Share, require, settings


@settings
class VQKDRecipe(Training):
    """Everything that decides the result; the defaults are the published settings but for teacher and data.

    Raises:
        MapetError: on creation: a setting that does not exist, or a value that is refused.
    """

    teacher: Annotated[PathText, Option(common=True)] = "efficientnet_lite0"
    """Frozen teacher: a timm model's name; efficientnet_lite0, whose weights are installed already; pixels; or the
    folder of a run that was exported for timm."""
    teacher_stage: int | None = None
    """Its feature stage, counted from 0; None: the last (for efficientnet_lite0 the one of stride 16)."""
    teacher_output: Literal["stage", "norm", "head"] = "stage"
    """What of the stage: stage, as it is; norm, after a transformer's final norm; head, after norm and head (published:
    head, of CLIP's ViT-B/16)."""
    teacher_weights: PathText | None = None
    """A local file of the teacher's weights (.safetensors or .pth); None: those that timm publishes."""
    vocab_size: Annotated[int, Field(ge=2, le=65536), Option(old=("codes",), common=True)] = 8192
    """Number of different tokens."""
    code_dim: Count = 32
    """Width of a code."""
    image_size: Annotated[Count, Option(common=True)] = 224
    """Side of the tokenizer's images in pixels."""
    patch_size: Annotated[Count, Option(common=True)] = 16
    """Side of a patch in pixels."""
    embed_dim: Count = 768
    """Width of encoder and decoder."""
    depth: Count = 12
    """Blocks of the encoder."""
    num_heads: Count = 12
    """Attention heads of encoder and decoder."""
    decoder_depth: Count = 3
    """Blocks of the decoder; published are 1 and 3."""
    commitment: Rate = 1.0
    """Weight of the features' distance to their codes."""
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """Of the moving averages of codes and usage; 0.9 suits a run of a few hundred steps."""
    restart: Annotated[float, Field(ge=0, lt=0.5)] = 0.05
    """Codes used less than this share of the mean are put where a feature is; 0: never, as published."""
    scale: Interval | None = (0.08, 1.0)
    """Random resized crops of this share of the area; None: the whole centred square."""
    hflip: Share = 0.5
    """Share of the images that are mirrored."""
    epochs: Annotated[Count, Option(common=True)] = 100
    """Passes over the images."""
    batch_size: Annotated[Count, Option(common=True)] = 512
    """Images a step, over all devices together."""
    lr: Annotated[Rate | None, Option(common=True)] = None
    """Largest learning rate; None: 5e-5 × batch_size / 128."""
    min_lr: Rate = 1e-5
    """Learning rate of the last step, unless the largest is below it."""
    warmup_lr: Rate = 1e-6
    """Learning rate of the first step."""
    warmup_epochs: Rate = 10.0
    """Epochs of linear warm-up."""
    weight_decay: Rate = 1e-4
    """AdamW's decay of weight matrices."""
    betas: Betas = (0.9, 0.99)
    """AdamW's decay rates of the two moments."""
    clip_grad: Rate | None = None
    """Largest L2 norm of the gradients; None: no clipping."""

    def __post_init__(self) -> None:
        require_intervals(self.scale)
        require(
            (
                not self.image_size % self.patch_size,
                f"--patch-size must divide --image-size {self.image_size}, got {self.patch_size}.",
            ),
            (
                not self.embed_dim % self.num_heads,
                f"--num-heads must divide --embed-dim {self.embed_dim}, got {self.num_heads}.",
            ),
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def peak(self) -> float:
        """The largest learning rate."""
        return 5e-5 * self.batch_size / 128 if self.lr is None else self.lr
