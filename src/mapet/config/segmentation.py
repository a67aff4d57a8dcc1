"""Settings of the verbs for segmentation."""

from dataclasses import field
from typing import Annotated

from pydantic import Field

from mapet.config.evaluate import Positive
from mapet.config.finetune import RANDOM, AtMost1, Backbone
from mapet.config.recipe import Accelerator
from mapet.config.setting import Below1, Count, Interval, Option, PathText, Rate, Seed, Share, require, settings
from mapet.config.training import Optimization, Training


@settings
class ShapesSettings:
    """Settings of ``shapes``."""

    classes: Annotated[int, Field(ge=1, le=254), Option(common=True)] = 10
    """Classes: the sub-folders with the most usable images."""
    train: Annotated[Count, Option(common=True)] = 1000
    """Images of the training split."""
    test: Annotated[Count, Option(common=True)] = 250
    """Images of the validation split."""
    size: Annotated[Count, Option(common=True)] = 224
    """Side of the images in pixels."""
    objects: Annotated[Count, Option(common=True)] = 3
    """Most shapes of an image."""
    seed: Annotated[Seed, Option(common=True)] = 0
    """Random seed."""


@settings
class SegmentProbeSettings:
    """Settings of ``segment_probe``."""

    image_size: Annotated[Count | None, Option(common=True)] = None
    """Shorter side of the images that the encoder sees, in whole patches; positions are interpolated. None: that of
    FROM."""
    max_images: Annotated[Count | None, Option(common=True)] = None
    """Use only this many training images, chosen at random; None: all."""
    max_patches: Annotated[Count, Option(common=True)] = 50_000
    """Use about this many training patches, the same number of each image."""
    k: Annotated[Count, Option(common=True)] = 20
    """segment-knn: neighbours that vote."""
    temperature: Positive = 0.07
    """segment-knn: T of a neighbour's weight exp(cosine / T)."""
    reduce_zero_label: bool = True
    """Label 0 is ignored and the classes begin at 1, as in ADE20K; no: they begin at 0. 255 is always ignored."""
    random: Annotated[bool, Option(common=True)] = False
    """Evaluate the encoder of a pre-training run as it was before training."""
    num_heads: Count | None = None
    """Attention heads of a checkpoint file, which does not store them; None: width / 64."""
    seed: Annotated[Seed, Option(common=True)] = 0
    """Random seed of images, patches and the held-out tenth."""
    accelerator: Annotated[Accelerator, Option(common=True)] = "auto"
    """auto, cpu, cuda or mps."""


@settings
class Decoder:
    """The UPerNet head."""

    channels: Count = 512
    """Channels of the head."""
    auxiliary_channels: Count = 256
    """Channels of the auxiliary head."""
    auxiliary_weight: Rate = 0.4
    """Weight of the auxiliary head's loss."""


@settings
class SceneAugmentation:
    """Augmentation of the training images and their masks."""

    scale: Interval = (0.5, 2.0)
    """Shorter side of the scaled image in sides of the crop, uniform."""
    hflip: Share = 0.5
    """Probability of a horizontal flip."""
    photometric: bool = True
    """Change brightness, contrast, saturation and hue, each with probability 0.5."""
    cat_max_ratio: Share = 0.75
    """Draw a crop anew, up to nine times, of which one class covers more than this."""

    def __post_init__(self) -> None:
        low, high = self.scale
        require((0 < low <= high, f"--scale must be two numbers, 0 < low <= high, got {low:g} {high:g}."))


def _optimization() -> Optimization:
    return Optimization(
        epochs=100, batch_size=16, base_lr=1.6e-3, min_lr=0.0, warmup_lr=0.0, warmup_epochs=1.0, clip_grad=None
    )


@settings
class SegmentRecipe(Training):
    """All settings that determine the result of training a segmentation model.

    The defaults are those of BEiT's and MAE's published code for ViT-B on ADE20K, with 100 epochs, a crop of the size
    that FROM has, and a learning rate of 1e-4.

    Raises:
        MapetError: on creation: a setting that does not exist, or a value that is refused.
    """

    init: Annotated[PathText, Option(common=True)] = ""
    """FROM: a run, an export, an official-format checkpoint, a timm model or random; may come first, without --init."""
    data: Annotated[PathText, Option(common=True)] = ""
    """Segmentation set: a folder in ADE20K's layout, or a YAML file that names folders of images and masks."""
    reduce_zero_label: bool = True
    """Label 0 is ignored and the classes begin at 1, as in ADE20K; no: they begin at 0. 255 is always ignored."""
    drop_path: Below1 = 0.1
    """Drop rate of the last block in stochastic depth; the rate grows linearly from 0."""
    layer_decay: Annotated[AtMost1, Option(common=True)] = 0.65
    """Factor of the learning rate from each block to the one below it; 1: no decay."""
    stride: Annotated[Count | None, Option(common=True)] = None
    """Pixels between the windows of a test image, of --image-size; None: two thirds of it."""
    backbone: Backbone = field(default_factory=Backbone)
    decoder: Decoder = field(default_factory=Decoder)
    augmentation: SceneAugmentation = field(default_factory=SceneAugmentation)
    optimization: Optimization = field(default_factory=_optimization)

    @property
    def lr(self) -> float:
        """The peak learning rate."""
        o = self.optimization
        return o.base_lr * o.batch_size / 256 if o.lr is None else o.lr


def segmentation_protocol(t: SegmentRecipe) -> str:
    """The description under which the scores of a segmentation model are reported."""
    a, o, d = t.augmentation, t.optimization, t.decoder
    kind = "training from random" if t.init == RANDOM else "fine-tuning"
    distortion = ", photometric distortion" if a.photometric else ""
    return (
        f"segmentation, UPerNet of {d.channels} channels, {kind}, {o.epochs:g} epochs of AdamW, batch {o.batch_size}, "
        f"lr {t.lr:.3g} (poly), layer decay {t.layer_decay:g}, drop path {t.drop_path:g}, weight decay "
        f"{o.weight_decay:g}, scale {a.scale[0]:g} to {a.scale[1]:g}{distortion}, sliding windows, one scale"
    )
