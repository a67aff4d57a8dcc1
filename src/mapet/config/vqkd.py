"""VQ-KD recipes: all settings of a training that change its result."""

from typing import Annotated, Literal

from pydantic import Field

from mapet.config.setting import Count, Interval, Option, PathText, Rate, Share, require, require_intervals, settings
from mapet.config.training import Betas, Training


@settings
class VQKDRecipe(Training):
    """All settings that determine the result; the defaults are the published ones except for teacher and data.

    Raises:
        MapetError: on creation: a setting that does not exist, or a value that is refused.
    """

    teacher: Annotated[PathText, Option(common=True)] = "efficientnet_lite0"
    """Frozen teacher: a timm model, efficientnet_lite0 (installed with mapet), pixels, or an exported run's folder."""
    teacher_stage: int | None = None
    """Feature stage of the teacher, from 0; None: the last (efficientnet_lite0: the one of stride 16)."""
    teacher_output: Literal["stage", "norm", "head"] = "stage"
    """Output of the teacher: the stage, or for a transformer after its final norm, or after norm and head."""
    teacher_weights: PathText | None = None
    """Local file with the teacher's weights (.safetensors or .pth); None: timm's published weights."""
    vocab_size: Annotated[int, Field(ge=2, le=65536), Option(old=("codes",), common=True)] = 8192
    """Number of different tokens."""
    code_dim: Count = 32
    """Dimension of a code vector."""
    image_size: Annotated[Count, Option(common=True)] = 224
    """Side of the input images in pixels."""
    patch_size: Annotated[Count, Option(common=True)] = 16
    """Side of a patch in pixels."""
    embed_dim: Count = 768
    """Width of encoder and decoder."""
    depth: Count = 12
    """Blocks of the encoder."""
    num_heads: Count = 12
    """Attention heads of encoder and decoder."""
    decoder_depth: Count = 3
    """Blocks of the decoder (published: 1 and 3)."""
    commitment: Rate = 1.0
    """Weight of the commitment loss, the distance of features to their codes."""
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """Decay of the moving averages of codes and usage; 0.9 suits runs of a few hundred steps."""
    restart: Annotated[float, Field(ge=0, lt=0.5)] = 0.05
    """Replace codes that are used less than this fraction of the mean by a feature; 0: never, as published."""
    scale: Interval | None = (0.08, 1.0)
    """Area of random resized crops, as fractions of the image; None: the whole centred square, no crops."""
    hflip: Share = 0.5
    """Probability of a horizontal flip."""
    epochs: Annotated[Count, Option(common=True)] = 100
    """Passes over the images."""
    batch_size: Annotated[Count, Option(common=True)] = 512
    """Images per step, over all devices together."""
    lr: Annotated[Rate | None, Option(common=True)] = None
    """Peak learning rate; None: 5e-5 × --batch-size / 128."""
    min_lr: Rate = 1e-5
    """Learning rate of the last step, unless the peak is below it."""
    warmup_lr: Rate = 1e-6
    """Learning rate of the first step."""
    warmup_epochs: Rate = 10.0
    """Epochs of linear warm-up."""
    weight_decay: Rate = 1e-4
    """Weight decay of AdamW, applied to weight matrices."""
    betas: Betas = (0.9, 0.99)
    """Betas of AdamW."""
    clip_grad: Rate | None = None
    """Clip gradients to this L2 norm; None: no clipping."""

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
        """The peak learning rate."""
        return 5e-5 * self.batch_size / 128 if self.lr is None else self.lr
