"""Recipes: all settings that change a result, and apart from them those that must not.

A recipe is a value: print it, save it as YAML, read it back, compare two. Nothing is built here, so this file imports
no torch and a mistake is told at once.
"""

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from mapet.config.checks import check
from mapet.config.objectives import reads_tokens
from mapet.utils.errors import MapetError, nearest
from mapet.utils.io import replace_file

FORBID_UNKNOWN = {"extra": "forbid"}
T = TypeVar("T")


@dataclass(frozen=True)
class Model:
    """The encoder."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_UNKNOWN
    model: str = "vit_tiny"
    """vit_tiny, vit_small, vit_base, vit_large; or custom, with the next three."""
    embed_dim: int | None = None
    """Width of a custom model."""
    depth: int | None = None
    """Blocks of a custom model."""
    num_heads: int | None = None
    """Attention heads of a custom model."""
    image_size: int = 224
    """Side of the student's images in pixels."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    init_values: float | None = 0.1
    """Start of the layer scale; None for a model without."""
    drop_path: float = 0.1
    """Stochastic depth of the last block, growing linearly from 0."""
    pos_embed: str = "learn"
    """Positions: learn, or sincos (fixed)."""


@dataclass(frozen=True)
class Objective:
    """What is predicted from what."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_UNKNOWN
    objective: str = "mapet"
    """mapet (masked and permuted), pet (permuted alone), mim (masked, BEiT); cae or mae, which reads no tokens."""
    mask_ratio: float = 0.75
    """Share of the patches that is predicted."""
    order: str = "uniform"
    """Distribution of orders: uniform, blockwise (BEiT's rectangles) or raster."""
    groups: int | None = None
    """Steps in which mapet and pet reveal the hidden patches; None: one patch at a time, as published."""
    cls_layer: int | None = None
    """Blocks before mapet, pet or mim predict again with the last CLS (BEiT v2: 9 of 12, 21 of 24); None: not again."""
    decoder_embed_dim: int | None = None
    """Width of mae's decoder (None: as published; half a custom encoder's) or of cae's two parts (the encoder's)."""
    decoder_num_heads: int | None = None
    """Attention heads of these, given together with their width."""
    decoder_depth: int | None = None
    """Blocks of the decoder; None: in mae as published, 1 for a custom encoder; in cae 4."""
    regressor_depth: int = 4
    """Blocks of cae's regressor."""
    alignment_weight: float = 2.0
    """Factor of cae's squared error between the regressor's guess and the teacher's answer."""
    normalize_pixels: bool = True
    """Each patch that mae paints is normalised to mean 0 and variance 1."""


@dataclass(frozen=True)
class Tokenizer:
    """How visual tokens are made, where no folder of ready ones is given."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_UNKNOWN
    tokenizer: str | None = None
    """Folder of a ready tokenizer, asked as images come in pre-training. None: the next settings fit one."""
    teacher: str = "efficientnet_lite0"
    """Frozen teacher: a timm model; efficientnet_lite0, which is installed; pixels; or an exported run's folder."""
    teacher_stage: int | None = None
    """Its feature stage, counted from 0; None: the last (for efficientnet_lite0 the one of stride 16)."""
    teacher_output: str = "stage"
    """What of the stage: stage, as it is; norm, after a transformer's final norm; head, after norm and head."""
    teacher_weights: str | None = None
    """A local file of the teacher's weights (.safetensors or .pth); None: those that timm publishes."""
    codes: int = 8192
    """Centroids, that is the vocabulary."""
    samples: int | None = None
    """Patch features that are held in memory; None: 512 for each centroid, or 8 where mode is stream."""
    fit_images: int | None = None
    """Images that the samples are drawn from; None: all."""
    iterations: int = 20
    """Rounds of k-means."""
    restarts: int = 1
    """Runs of k-means, of which the best is taken."""
    metric: str = "euclidean"
    """Distance of k-means: euclidean or cosine."""
    start: str = "k-means++"
    """First centroids: k-means++, or sample (some of the features, by chance)."""
    mode: str = "sample"
    """sample: k-means sees the features held in memory; stream: all, computed anew in each round."""
    distances: str = "float32"
    """Products of k-means on a GPU: float32, tf32 or bfloat16; summed in float32, near ties compared again."""


@dataclass(frozen=True)
class Optimization:
    """How the weights move; the defaults are those of the published pre-training configuration."""

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_UNKNOWN
    epochs: float = 300
    """Passes over the images; a fraction ends in the midst of one."""
    batch_size: int = 256
    """Images a step, over all devices together."""
    lr: float | None = None
    """Largest learning rate; None: base_lr × batch_size / 256."""
    base_lr: float = 1.875e-4
    """Largest learning rate for a batch of 256 (pre-training, published: 1.5e-3 for 2048)."""
    min_lr: float = 1e-5
    """Learning rate of the last step."""
    warmup_lr: float = 1e-6
    """Learning rate of the first step."""
    warmup_epochs: float = 10.0
    """Epochs of linear warm-up."""
    weight_decay: float = 0.05
    """AdamW's decay of weight matrices."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    no_decay: tuple[str, ...] = ("pos_embed", "cls_token")
    """Parameters without weight decay beside all vectors; add mask_token to spare the mask vector too."""
    clip_grad: float | None = 3.0
    """Largest L2 norm of the gradients; None: no clipping."""
    ema_decay: float | None = None
    """Keep a moving average of the weights with this decay, and evaluate that."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a pre-training's result.

    Raises:
        MapetError: from ``check``, on creation: a name or number that makes no sense.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = FORBID_UNKNOWN
    data: str = ""
    """A folder of images, nested in any way or packed by mapet pack, or cifar10."""
    tokens: str | None = None
    """Folder that mapet tokenize wrote; None: tokens are made in the run's folder by the tokenizer settings."""
    max_images: int | None = None
    """Use only so many of the images, chosen at random; None: all."""
    scale: tuple[float, float] | None = None
    """Random resized crops of this share of the area, tokenized as they come; None: the whole centred square."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width / height of the random resized crops."""
    hflip: float = 0.0
    """Share of the images that are mirrored."""
    color_jitter: float = 0.4
    """Strength of brightness, contrast and saturation jitter, of the student's images alone."""
    precision: str = "float32"
    """float32, or bfloat16 (mixed)."""
    seed: int = 0
    """Of all chance."""
    model: Model = field(default_factory=Model)
    objective: Objective = field(default_factory=Objective)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    optimization: Optimization = field(default_factory=Optimization)

    def __post_init__(self) -> None:
        check(self)

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
        """Places of an order that are given, CLS included."""
        return 1 + self.grid[0] * self.grid[1] - self.num_masked

    @property
    def reads_tokens(self) -> bool:
        """Whether the objective needs visual tokens."""
        return reads_tokens(self.objective.objective)

    @property
    def lr(self) -> float:
        """The largest learning rate."""
        o = self.optimization
        return o.base_lr * o.batch_size / 256 if o.lr is None else o.lr


@dataclass(frozen=True)
class Runtime:
    """What must not change a result, beyond rounding."""

    workers: int | None = None
    """Processes that decode images for each device; None: up to 8 beside an accelerator, none on a CPU."""
    accelerator: str = "auto"
    """auto, cpu, cuda or mps."""
    devices: int = 1
    """Devices on this node; under torchrun, processes on it."""
    num_nodes: int = 1
    """Nodes."""
    strategy: str = "ddp"
    """Several devices: ddp, or fsdp, which spreads the weights and all that belongs to them over the devices."""
    micro_batch_size: int | None = None
    """Images that a device works on at once, at most, to save memory; None: its whole share of a batch."""
    compile: bool = False
    """Compile the objective with torch.compile."""
    grad_checkpointing: bool = False
    """Compute each block's forward pass again in the backward pass instead of keeping it, to save memory."""
    save_every: int = 0
    """Keep a checkpoint every so many steps, beside the last one; 0: only the last."""
    cache_gib: float = 2.0
    """Decoded images are held in memory when they fit into so many GiB."""
    max_bad_fraction: float = 0.01
    """Largest share of images that may be unreadable."""

    def __post_init__(self) -> None:
        for option, fits, wanted in (
            ("workers", self.workers is None or self.workers >= 0, "at least 0"),
            ("devices", self.devices >= 1, "at least 1"),
            ("num-nodes", self.num_nodes >= 1, "at least 1"),
            ("strategy", self.strategy in ("ddp", "fsdp"), "ddp or fsdp"),
            ("micro-batch-size", self.micro_batch_size is None or self.micro_batch_size >= 1, "at least 1"),
            ("save-every", self.save_every >= 0, "at least 0"),
            ("cache-gib", self.cache_gib >= 0, "at least 0"),
            ("max-bad-fraction", 0 <= self.max_bad_fraction <= 1, "0 … 1"),
        ):
            if not fits:
                raise MapetError(f"--{option} does not fit: it must be {wanted}.")

    @property
    def processes(self) -> int:
        """Devices on all nodes."""
        return self.devices * self.num_nodes

    def parts(self, batch_size: int) -> int:
        """Parts into which each device cuts its share of a batch, equal up to one image."""
        share = max(1, batch_size // self.processes)
        return -(-share // (self.micro_batch_size or share))


def save(recipe: Any, path: Path) -> None:
    """Write a dataclass of settings as YAML, whole or not at all, that ``read`` reads back to an equal one."""
    import yaml

    replace_file(path, yaml.safe_dump(_plain(asdict(recipe)), sort_keys=False, allow_unicode=True))


def load(path: str | Path) -> Recipe:
    """A recipe of pre-training from YAML; raises as ``read``."""
    return read(path, Recipe)


def read(path: str | Path, kind: type[T]) -> T:
    """Read settings of the dataclass ``kind`` from YAML; those that it leaves out have their defaults.

    Raises:
        MapetError: no such file, no YAML, an unknown setting or a wrong type.
    """
    import yaml
    from pydantic import TypeAdapter, ValidationError

    try:
        content = yaml.safe_load(Path(path).read_text())
        return TypeAdapter(kind).validate_python(content or {})
    except OSError as error:
        raise MapetError(f"Cannot read the recipe {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MapetError(f"{path} is no YAML: {' '.join(str(error).split())[:200]}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"]]
        known = {part for name in settings(kind()) for part in name.split(".")}
        hint = nearest(place[-1], known) if first["type"] == "unexpected_keyword_argument" else ""
        raise MapetError(f"{path}: {'.'.join(place) or 'the whole'}: {first['msg']}.{hint}") from error


def settings(value: Any, prefix: str = "") -> dict[str, Any]:
    """All settings of nested dataclasses, flat, with dotted names."""
    flat: dict[str, Any] = {}
    for one in fields(value):
        inner = getattr(value, one.name)
        flat |= settings(inner, f"{prefix}{one.name}.") if is_dataclass(inner) else {prefix + one.name: inner}
    return flat


def diff(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """The settings in which two recipes, or any two dataclasses alike, differ, with both values."""
    theirs = settings(b)
    return {name: (value, theirs[name]) for name, value in settings(a).items() if value != theirs[name]}


def fair(a: Recipe, b: Recipe) -> list[str]:
    """The settings outside the objective in which two recipes differ: none in a fair comparison."""
    return [name for name in diff(a, b) if not name.startswith("objective.")]


def _plain(value: Any) -> Any:
    nested = isinstance(value, dict)
    return {n: _plain(v) for n, v in value.items()} if nested else list(value) if isinstance(value, tuple) else value
