"""Pre-training recipes: all settings that change a result.

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
from mapet.config.runtime import Accelerator as Accelerator
from mapet.config.runtime import Runtime as Runtime
from mapet.config.setting import (
    Below1,
    Count,
    Interval,
    Option,
    PathText,
    Rate,
    Share,
    flag,
    option,
    require,
    require_intervals,
    settings,
    spoken,
)
from mapet.config.training import Optimization as Optimization
from mapet.config.training import Training

ModelName = Literal["vit_tiny", "vit_small", "vit_base", "vit_large", "custom"]
Positions = Literal["learn", "sincos"]

OBJECTIVES = tuple(BUILT_IN)


@settings
class Model:
    """The encoder."""

    name: Annotated[ModelName, Option("model", common=True)] = "vit_tiny"
    """Size; custom needs --embed-dim, --depth and --num-heads."""
    embed_dim: Count | None = None
    """Width of a custom model."""
    depth: Count | None = None
    """Blocks of a custom model."""
    num_heads: Count | None = None
    """Attention heads of a custom model."""
    image_size: Annotated[Count, Option(common=True)] = 224
    """Side of the input images in pixels."""
    patch_size: Annotated[Count, Option(common=True)] = 16
    """Side of a patch in pixels."""
    init_values: Rate | None = 0.1
    """Initial value of LayerScale; None or 0: no LayerScale."""
    drop_path: Below1 = 0.1
    """Drop rate of the last block in stochastic depth; the rate grows linearly from 0."""
    pos_embed: Positions = "learn"
    """Position embedding: learned, or fixed sine-cosine."""

    def __post_init__(self) -> None:
        sizes = (self.embed_dim, self.depth, self.num_heads)
        custom = [size is not None for size in sizes]
        (side, rest), width = divmod(self.image_size, self.patch_size), self.embed_dim or 4
        require(
            (
                all(custom) if self.name == "custom" else not any(custom),
                "--embed-dim, --depth and --num-heads go together, with --model custom and no other.",
            ),
            (
                side >= 2 and not rest,
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
    """The pre-training task."""

    name: Annotated[str, Option("objective", common=True)] = "mapet"
    """mapet (masked and permuted), pet (permuted), mim (masked, as BEiT), cae, mae (no tokens), or FILE.py:CLASS."""
    mask_ratio: Annotated[float, Field(gt=0, le=1), Option(common=True)] = 0.75
    """Fraction of the patches that is predicted."""
    order: Literal["uniform", "blockwise", "raster"] = "uniform"
    """How the order of the patches is drawn: uniform, blockwise (BEiT's rectangles) or raster (no permutation)."""
    groups: Annotated[Count | None, Option(objectives=("mapet", "pet"))] = None
    """Number of steps in which the masked patches are revealed; None: one patch at a time, as published."""
    cls_layer: Annotated[Count | None, Option(objectives=("mapet", "pet", "mim"))] = None
    """Block whose patches predict a second time, with the last CLS, as in BEiT v2 (9 of 12, 21 of 24); None: off."""
    decoder_embed_dim: Annotated[Count | None, Option(objectives=("cae", "mae"))] = None
    """Width of the decoder; None: mae as published or half a custom encoder's width, cae the encoder's width."""
    decoder_num_heads: Annotated[Count | None, Option(objectives=("cae", "mae"))] = None
    """Attention heads of the decoder, given together with --decoder-embed-dim."""
    decoder_depth: Annotated[Count | None, Option(objectives=("cae", "mae"))] = None
    """Blocks of the decoder; None: mae as published or 1 for a custom encoder, cae 4."""
    regressor_depth: Annotated[Count, Option(objectives=("cae",))] = 4
    """Blocks of the regressor."""
    alignment_weight: Annotated[Rate, Option(objectives=("cae",))] = 2.0
    """Weight of the squared error between the regressor's output and the teacher's."""
    normalize_pixels: Annotated[bool, Option(objectives=("mae",))] = True
    """Normalize each target patch to mean 0 and variance 1."""

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
"""The objectives of each setting that not all objectives have."""


@settings
class Tokenizer:
    """How visual tokens are made, unless --tokens names ready ones."""

    path: Annotated[PathText | None, Option("tokenizer", common=True)] = None
    """Folder of a tokenizer; None: fit one with the following settings."""
    teacher: Annotated[PathText, Option(common=True)] = "efficientnet_lite0"
    """Frozen teacher: a timm model, efficientnet_lite0 (installed with mapet), pixels, or an exported run's folder."""
    teacher_stage: int | None = None
    """Feature stage of the teacher, from 0; None: the last (efficientnet_lite0: the one of stride 16)."""
    teacher_output: Literal["stage", "norm", "head"] = "stage"
    """Output of the teacher: the stage, or for a transformer after its final norm, or after norm and head."""
    teacher_weights: PathText | None = None
    """Local file with the teacher's weights (.safetensors or .pth); None: timm's published weights."""
    vocab_size: Annotated[int, Field(ge=2, le=65536), Option(old=("codes",), common=True)] = 8192
    """Number of centroids, that is of different tokens."""
    samples: Count | None = None
    """Patch features held in memory; None: 512 per centroid, or 8 with --kmeans-mode stream."""
    fit_images: Annotated[Count | None, Option(old=("fit_pictures",))] = None
    """Number of images that the samples are drawn from; None: all."""
    iterations: Count = 20
    """Iterations of k-means."""
    restarts: Count = 1
    """Runs of k-means; the best is kept."""
    metric: Literal["euclidean", "cosine"] = "euclidean"
    """Distance of k-means."""
    kmeans_init: Annotated[Literal["k-means++", "sample"], Option(old=("start",))] = "k-means++"
    """Initial centroids: k-means++, or a random sample of the features."""
    kmeans_mode: Annotated[Literal["sample", "stream"], Option(old=("mode",))] = "sample"
    """sample: cluster the features held in memory; stream: cluster all, recomputed in each iteration."""
    kmeans_precision: Annotated[Literal["float32", "tf32", "bfloat16"], Option(old=("distances",))] = "float32"
    """Precision of the matrix products of k-means; near ties are compared again, so all assign as float32. tf32 is for
    GPUs; a CPU without instructions for bfloat16 computes in float32."""


@settings
class Recipe(Training):
    """All settings that determine the result of a pre-training.

    Raises:
        MapetError: on creation: a setting that does not exist, or a value that is refused.
    """

    tokens: Annotated[PathText | None, Option(common=True)] = None
    """Folder written by mapet tokenize; None: make tokens in the run's folder, with the tokenizer settings."""
    init: Annotated[PathText, Option(common=True)] = ""
    """Start from the weights of FROM: a run, an export, a checkpoint file, a timm name; positions are interpolated."""
    draft: Count | None = None
    """Decode each JPEG file at the smallest of 1/8, 1/4, 1/2 and 1 of its size whose shorter side has so many pixels;
    None: at its size. Large photographs load faster; pixels differ slightly, so tokens must be made with the same."""
    scale: Interval | None = None
    """Area of random resized crops, as fractions of the image; None: the whole centred square, no crops."""
    ratio: Interval = (3 / 4, 4 / 3)
    """Aspect ratio of random resized crops, width / height."""
    hflip: Share = 0.0
    """Probability of a horizontal flip."""
    color_jitter: Share = 0.4
    """Strength of brightness, contrast and saturation jitter; the tokenizer sees images without it."""
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
        """Whether images are cropped or flipped at random, so that ready tokens would be of another view."""
        return self.scale is not None or self.hflip > 0

    @property
    def num_masked(self) -> int:
        """Predicted patches of each image."""
        return round(self.objective.mask_ratio * self.grid[0] * self.grid[1])

    @property
    def context(self) -> int:
        """Visible positions of an order, CLS included."""
        return 1 + self.grid[0] * self.grid[1] - self.num_masked

    @property
    def reads_tokens(self) -> bool:
        """Whether the objective needs visual tokens."""
        return reads_tokens(self.objective.name)

    @property
    def lr(self) -> float:
        """The peak learning rate."""
        o = self.optimization
        return o.base_lr * o.batch_size / 256 if o.lr is None else o.lr


def load(path: str | Path) -> Recipe:
    """A recipe of pre-training from YAML; raises as ``read``."""
    return read(path, Recipe)


def fair(a: Recipe, b: Recipe) -> list[str]:
    """The settings outside the objective in which two recipes differ: none in a fair comparison."""
    return [name for name in diff(a, b) if not name.startswith("objective.")]
