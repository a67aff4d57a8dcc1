"""Recipes: all settings that change a result, and apart from them those that must not.

A recipe is a value: print it, save it as YAML, read it back, compare two. Nothing is built here, so this file imports
no torch and a mistake is reported at once.
"""

from dataclasses import field, fields
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from mapet.config.file import read as read
from mapet.config.file import save as save
from mapet.config.flat import diff as diff
from mapet.config.objectives import BUILT_IN, is_own, reads_tokens, require_objective
from mapet.config.setting import Below1, Count, Option, PathText, Rate, Share, flag, option, require, settings, spoken

ModelName = Literal["vit_tiny", "vit_small", "vit_base", "vit_large", "custom"]
Positions = Literal["learn", "sincos"]
Precision = Literal["float32", "bfloat16"]
Accelerator = Literal["auto", "cpu", "cuda", "mps"]
Betas = tuple[Below1, Below1]
Interval = tuple[float, float]

OBJECTIVES = tuple(BUILT_IN)


@settings
class Model:
    """The encoder."""

    name: Annotated[ModelName, Option("model", common=True)] = "vit_tiny"
    """vit_tiny, vit_small, vit_base, vit_large; or custom, with the next three."""
    embed_dim: Count | None = None
    """Width of a custom model."""
    depth: Count | None = None
    """Blocks of a custom model."""
    num_heads: Count | None = None
    """Attention heads of a custom model."""
    image_size: Annotated[Count, Option(common=True)] = 224
    """Side of the student's images in pixels."""
    patch_size: Annotated[Count, Option(common=True)] = 16
    """Side of a patch in pixels."""
    init_values: float | None = 0.1
    """Start of the layer scale; None for a model without."""
    drop_path: Below1 = 0.1
    """Stochastic depth of the last block, growing linearly from 0."""
    pos_embed: Positions = "learn"
    """Positions: learn, or sincos (fixed)."""

    def __post_init__(self) -> None:
        sizes = (self.embed_dim, self.depth, self.num_heads)
        custom = [size is not None for size in sizes]
        side, width = self.image_size / self.patch_size, self.embed_dim or 4
        require(
            (
                all(custom) if self.name == "custom" else not any(custom),
                "--embed-dim, --depth and --num-heads go together, with --model custom and no other.",
            ),
            (
                side == int(side) >= 2,
                f"--patch-size must divide --image-size {self.image_size} at least twice, got {self.patch_size}.",
            ),
            (
                not width % (self.num_heads or 1) or not self.embed_dim,
                f"--num-heads must divide --embed-dim {self.embed_dim}, got {self.num_heads}.",
            ),
            (
                self.pos_embed != "sincos" or not width % 4,
                f"--embed-dim must be divisible by 4 with --pos-embed sincos, got {self.embed_dim}.",
            ),
        )


@settings
class Objective:
    """What is predicted from what."""

    name: Annotated[str, Option("objective", common=True)] = "mapet"
    """mapet (masked and permuted), pet (permuted), mim (masked, BEiT), cae, mae (pixels), or file.py:Class."""
    mask_ratio: Annotated[float, Field(gt=0, le=1), Option(common=True)] = 0.75
    """Share of the patches that is predicted."""
    order: Literal["uniform", "blockwise", "raster"] = "uniform"
    """Distribution of orders: uniform, blockwise (BEiT's rectangles) or raster."""
    groups: Annotated[Count | None, Option(objectives=("mapet", "pet"))] = None
    """Steps in which mapet and pet reveal the hidden patches; None: one patch at a time, as published."""
    cls_layer: Annotated[Count | None, Option(objectives=("mapet", "pet", "mim"))] = None
    """Blocks before mapet, pet or mim predict again with the last CLS (BEiT v2: 9 of 12, 21 of 24); None: not again."""
    decoder_embed_dim: Annotated[Count | None, Option(objectives=("cae", "mae"))] = None
    """Width of mae's decoder (None: as published; half a custom encoder's) or of cae's two parts (the encoder's)."""
    decoder_num_heads: Annotated[Count | None, Option(objectives=("cae", "mae"))] = None
    """Attention heads of these, given together with their width."""
    decoder_depth: Annotated[Count | None, Option(objectives=("cae", "mae"))] = None
    """Blocks of the decoder; None: in mae as published, 1 for a custom encoder; in cae 4."""
    regressor_depth: Annotated[Count, Option(objectives=("cae",))] = 4
    """Blocks of cae's regressor."""
    alignment_weight: Annotated[Rate, Option(objectives=("cae",))] = 2.0
    """Factor of cae's squared error between the regressor's guess and the teacher's answer."""
    normalize_pixels: Annotated[bool, Option(objectives=("mae",))] = True
    """Each patch that mae paints is normalised to mean 0 and variance 1."""

    def __post_init__(self) -> None:
        require_objective(self.name)
        width, heads = self.decoder_embed_dim, self.decoder_num_heads
        require(
            *(
                (
                    is_own(self.name) or self.name in option(one).objectives or getattr(self, one.name) == one.default,
                    f"{flag(one)} only applies to {spoken(option(one).objectives, 'and')}, not {self.name}; remove it.",
                )
                for one in fields(self)
                if option(one).objectives
            ),
            ((width is None) == (heads is None), "--decoder-embed-dim and --decoder-num-heads go together."),
            (not (width or 4) % 4, f"--decoder-embed-dim must be divisible by 4, got {width}."),
            (
                not (width or 0) % (heads or 1),
                f"--decoder-num-heads must divide --decoder-embed-dim {width}, got {heads}.",
            ),
        )


OWNERS = {one.name: option(one).objectives for one in fields(Objective) if option(one).objectives}
"""The objectives that have a setting which not all have."""


@settings
class Tokenizer:
    """How visual tokens are made, where no folder of ready ones is given."""

    path: Annotated[PathText | None, Option("tokenizer", common=True)] = None
    """Folder of a ready tokenizer, asked as images come in pre-training. None: the next settings fit one."""
    teacher: Annotated[PathText, Option(common=True)] = "efficientnet_lite0"
    """Frozen teacher: a timm model; efficientnet_lite0, which is installed; pixels; or an exported run's folder."""
    teacher_stage: int | None = None
    """Its feature stage, counted from 0; None: the last (for efficientnet_lite0 the one of stride 16)."""
    teacher_output: Literal["stage", "norm", "head"] = "stage"
    """What of the stage: stage, as it is; norm, after a transformer's final norm; head, after norm and head."""
    teacher_weights: PathText | None = None
    """A local file of the teacher's weights (.safetensors or .pth); None: those that timm publishes."""
    vocab_size: Annotated[int, Field(ge=2, le=65536), Option(old=("codes",), common=True)] = 8192
    """Centroids, that is the number of different tokens."""
    samples: Count | None = None
    """Patch features that are held in memory; None: 512 for each centroid, or 8 where --kmeans-mode is stream."""
    fit_images: Annotated[Count | None, Option(old=("fit_pictures",))] = None
    """Images that the samples are drawn from; None: all."""
    iterations: Count = 20
    """Rounds of k-means."""
    restarts: Count = 1
    """Runs of k-means, of which the best is taken."""
    metric: Literal["euclidean", "cosine"] = "euclidean"
    """Distance of k-means: euclidean or cosine."""
    kmeans_init: Annotated[Literal["k-means++", "sample"], Option(old=("start",))] = "k-means++"
    """First centroids: k-means++, or sample (random features)."""
    kmeans_mode: Annotated[Literal["sample", "stream"], Option(old=("mode",))] = "sample"
    """sample: k-means sees the features held in memory; stream: all, computed anew in each round."""
    kmeans_precision: Annotated[Literal["float32", "tf32", "bfloat16"], Option(old=("distances",))] = "float32"
    """Products of k-means on a GPU: float32, tf32 or bfloat16; summed in float32, near ties compared again."""


@settings
class Optimization:
    """How the weights move; the defaults are those of the published pre-training configuration."""

    epochs: Annotated[float, Field(gt=0), Option(common=True)] = 300
    """Passes over the images; a fraction ends in the midst of one."""
    batch_size: Annotated[Count, Option(common=True)] = 256
    """Images a step, over all devices together."""
    lr: Annotated[Rate | None, Option(common=True)] = None
    """Largest learning rate; None: base_lr × batch_size / 256."""
    base_lr: Rate = 1.875e-4
    """Largest learning rate for a batch of 256 (pre-training, published: 1.5e-3 for 2048)."""
    min_lr: Rate = 1e-5
    """Learning rate of the last step."""
    warmup_lr: Rate = 1e-6
    """Learning rate of the first step."""
    warmup_epochs: Rate = 10.0
    """Epochs of linear warm-up."""
    weight_decay: Rate = 0.05
    """AdamW's decay of weight matrices."""
    betas: Betas = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    no_decay: tuple[str, ...] = ("pos_embed", "cls_token")
    """Parameters without weight decay beside all vectors; add mask_token to spare the mask vector too."""
    clip_grad: Rate | None = 3.0
    """Largest L2 norm of the gradients; None: no clipping."""
    ema_decay: Annotated[float | None, Field(gt=0, lt=1)] = None
    """Keep a moving average of the weights with this decay, and evaluate that."""


@settings
class Training:
    """What every training has."""

    data: Annotated[PathText, Option(common=True)] = ""
    """A folder of images, nested in any way or packed by mapet pack, or cifar10."""
    max_images: Annotated[Count | None, Option(old=("limit",), common=True)] = None
    """Use only so many of the images, chosen at random; None: all."""
    precision: Annotated[Precision, Option(common=True)] = "float32"
    """float32, or bfloat16 (mixed)."""
    seed: Annotated[int, Option(common=True)] = 0
    """Random seed."""


@settings
class Recipe(Training):
    """Everything that decides a pre-training's result.

    Raises:
        MapetError: on creation: a setting that does not exist, or a value that is refused.
    """

    tokens: Annotated[PathText | None, Option(common=True)] = None
    """Folder that mapet tokenize wrote; None: tokens are made in the run's folder by the tokenizer settings."""
    scale: Interval | None = None
    """Random resized crops of this share of the area, tokenized as they come; None: the whole centred square."""
    ratio: Interval = (3 / 4, 4 / 3)
    """Width / height of the random resized crops."""
    hflip: Share = 0.0
    """Share of the images that are mirrored."""
    color_jitter: Share = 0.4
    """Strength of brightness, contrast and saturation jitter, of the student's images alone."""
    model: Model = field(default_factory=Model)
    objective: Objective = field(default_factory=Objective)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    optimization: Optimization = field(default_factory=Optimization)

    def __post_init__(self) -> None:
        m, o = self.model, self.objective
        layers = (m.depth or (24 if m.name == "vit_large" else 12)) - 2
        fixed = "--{} needs tokens made as images come: pass --tokenizer instead of --tokens."
        cae_width = o.decoder_embed_dim or m.embed_dim or 4
        require_intervals(self.scale, self.ratio)
        require(
            (not (self.tokens and self.tokenizer.path), "Pass --tokens or --tokenizer, not both."),
            (not (self.tokens and self.scale), fixed.format("scale")),
            (not (self.tokens and self.hflip), fixed.format("hflip")),
            (self.num_masked >= 1, f"--mask-ratio must mask at least one patch, got {o.mask_ratio:g}."),
            (
                o.name != "cae" or self.context >= 2,
                f"--mask-ratio must leave cae at least one visible patch, got {o.mask_ratio:g}.",
            ),
            (
                (o.groups or 1) <= self.num_masked,
                f"--groups must be <= {self.num_masked}, the number of masked patches, got {o.groups}.",
            ),
            (
                o.cls_layer is None or o.cls_layer <= layers,
                f"--cls-layer must be >= 1 and <= {layers}, the depth less 2, got {o.cls_layer}.",
            ),
            (o.name != "cae" or not cae_width % 4, f"--embed-dim must be divisible by 4 for cae, got {m.embed_dim}."),
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        side = self.model.image_size // max(1, self.model.patch_size)
        return side, side

    @property
    def varied(self) -> bool:
        """Whether images are cropped or mirrored at random: ready tokens would not be of the same view."""
        return self.scale is not None or self.hflip > 0

    @property
    def num_masked(self) -> int:
        """Predicted patches of each image."""
        return round(self.objective.mask_ratio * self.grid[0] * self.grid[1])

    @property
    def context(self) -> int:
        """Positions of an order that are given, CLS included."""
        return 1 + self.grid[0] * self.grid[1] - self.num_masked

    @property
    def reads_tokens(self) -> bool:
        """Whether the objective needs visual tokens."""
        return reads_tokens(self.objective.name)

    @property
    def lr(self) -> float:
        """The largest learning rate."""
        o = self.optimization
        return o.base_lr * o.batch_size / 256 if o.lr is None else o.lr


@settings
class Runtime:
    """What must not change a result, beyond rounding."""

    workers: Annotated[int | None, Field(ge=0), Option(common=True)] = None
    """Processes that decode images for each device; None: up to 8 beside an accelerator, none on a CPU."""
    accelerator: Annotated[Accelerator, Option(common=True)] = "auto"
    """Device type; auto: the best that is here."""
    devices: Annotated[Count, Option(common=True)] = 1
    """Devices on this node; under torchrun, processes on it."""
    num_nodes: Count = 1
    """Nodes."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """Several devices: ddp, or fsdp, which spreads the weights and all that belongs to them over the devices."""
    micro_batch_size: Annotated[Count | None, Option(old=("micro_batch",), common=True)] = None
    """Images that a device works on at once, at most, to save memory; None: its whole share of a batch."""
    compile: bool = False
    """Compile the objective with torch.compile."""
    grad_checkpointing: bool = False
    """Compute each block's forward pass again in the backward pass instead of keeping it, to save memory."""
    save_every: Annotated[int, Field(ge=0)] = 0
    """Keep a checkpoint every so many steps, beside the last one; 0: only the last."""
    cache_gib: Annotated[Rate, Option(old=("memory",))] = 2.0
    """Decoded images are held in memory when they fit into so many GiB."""
    max_bad_fraction: Annotated[Share, Option(old=("max_bad",))] = 0.01
    """Largest share of images that may be unreadable."""

    @property
    def processes(self) -> int:
        """Devices on all nodes."""
        return self.devices * self.num_nodes

    def parts(self, batch_size: int) -> int:
        """Parts into which each device cuts its share of a batch, equal up to one image."""
        share = max(1, batch_size // self.processes)
        return -(-share // (self.micro_batch_size or share))


def require_intervals(scale: Interval | None, ratio: Interval = (1, 1)) -> None:
    """Refuse bounds of random crops that make no sense."""
    low, high = scale or (1, 1)
    require(
        (0 < low <= high <= 1, f"--scale must be two numbers, 0 < low <= high <= 1, got {low:g} {high:g}."),
        (0 < ratio[0] <= ratio[1], f"--ratio must be two numbers, 0 < low <= high, got {ratio[0]:g} {ratio[1]:g}."),
    )


def load(path: str | Path) -> Recipe:
    """A recipe of pre-training from YAML; raises as ``read``."""
    return read(path, Recipe)


def fair(a: Recipe, b: Recipe) -> list[str]:
    """The settings outside the objective in which two recipes differ: none in a fair comparison."""
    return [name for name in diff(a, b) if not name.startswith("objective.")]
