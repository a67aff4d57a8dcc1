"""What the settings of pre-training, fine-tuning and VQ-KD training share."""

from typing import Annotated, Literal

from pydantic import Field

from mapet.config.setting import Below1, Count, Option, PathText, Rate, Seed, settings

MAX_PIXELS = 2**28 // 3  # as ``mapet.data.image`` has it
Precision = Literal["float32", "bfloat16"]
Betas = tuple[Below1, Below1]


@settings
class Optimization:
    """Optimizer and learning rate; the defaults are those of the published pre-training configuration."""

    epochs: Annotated[float, Field(gt=0), Option(common=True)] = 300
    """Passes over the images; may be a fraction."""
    batch_size: Annotated[Count, Option(common=True)] = 256
    """Images per step, over all devices together."""
    lr: Annotated[Rate | None, Option(common=True)] = None
    """Peak learning rate; None: --base-lr × --batch-size / 256."""
    base_lr: Rate = 1.875e-4
    """Peak learning rate for a batch of 256 (pre-training, published: 1.5e-3 for 2048)."""
    min_lr: Rate = 1e-5
    """Learning rate of the last step."""
    warmup_lr: Rate = 1e-6
    """Learning rate of the first step."""
    warmup_epochs: Rate = 10.0
    """Epochs of linear warm-up."""
    weight_decay: Rate = 0.05
    """Weight decay of AdamW, applied to weight matrices."""
    betas: Betas = (0.9, 0.999)
    """Betas of AdamW."""
    no_decay: tuple[str, ...] = ("pos_embed", "cls_token")
    """Parameters without weight decay, in addition to all vectors; mask_token may be added."""
    clip_grad: Rate | None = 3.0
    """Clip gradients to this L2 norm; None: no clipping."""
    ema_decay: Annotated[float | None, Field(gt=0, lt=1)] = None
    """Decay of a moving average of the weights, which is then evaluated; None: off."""


@settings
class Training:
    """Settings of every training."""

    data: Annotated[PathText, Option(common=True)] = ""
    """A folder of images (nested in any way, or packed by mapet pack), or cifar10."""
    max_images: Annotated[Count | None, Option(old=("limit",), common=True)] = None
    """Use only this many images, chosen at random; None: all."""
    max_pixels: Count = MAX_PIXELS
    """Largest number of pixels of an image; larger ones are unreadable. Decoding takes about 8 bytes for each."""
    precision: Annotated[Literal["auto", Precision], Option(common=True)] = "float32"
    """float32, bfloat16 (mixed precision), or auto: bfloat16 where the device has instructions for it. The run's recipe
    records what was chosen."""
    seed: Annotated[Seed, Option(common=True)] = 0
    """Random seed."""
