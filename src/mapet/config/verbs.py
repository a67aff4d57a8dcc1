"""Settings of the verbs that have no recipe: one dataclass for each verb, or for each group of its options."""

from dataclasses import dataclass, field

from mapet.utils.errors import MapetError, nearest

POOLS = ("avg", "token", "avg+token")


@dataclass(frozen=True)
class FeatureSettings:
    """Which images are encoded, and how."""

    max_images: int | None = None
    """Use only this many training images, drawn by the run's seed, or by seed 0 if FROM is not a run; None: all."""
    random: bool = False
    """Evaluate the encoder of a pre-training run as it was before training."""
    num_heads: int | None = None
    """Attention heads of a checkpoint file, which does not tell them; None: width / 64."""
    accelerator: str = "auto"
    """auto, cpu, cuda or mps."""
    workers: int | None = None
    """Processes that decode images; None: up to 8 with an accelerator, none on a CPU."""
    max_bad_fraction: float = 0.01
    """Largest share of images that may be unreadable."""
    cache_gib: float = 16.0
    """GiB that the features of all images may take."""

    def __post_init__(self) -> None:
        _require("max-images", self.max_images, self.max_images is None or self.max_images >= 1, ">= 1")
        _require("workers", self.workers, self.workers is None or self.workers >= 0, ">= 0")
        _require("max-bad-fraction", self.max_bad_fraction, 0 <= self.max_bad_fraction <= 1, "in 0 … 1")
        _require("cache-gib", self.cache_gib, self.cache_gib > 0, "> 0")


@dataclass(frozen=True)
class PoolSettings:
    """Which vector stands for an image."""

    pool: str = "avg"
    """Features: avg (mean of patches), token (class token) or avg+token (both, concatenated)."""

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise MapetError(f'There is no pool "{self.pool}".{nearest(self.pool, POOLS)}')


@dataclass(frozen=True)
class KNNSettings:
    """Weighted k-nearest-neighbour classification."""

    k: int = 20
    """Neighbours that vote."""
    temperature: float = 0.07
    """T of a neighbour's weight exp(cosine / T)."""

    def __post_init__(self) -> None:
        _require("k", self.k, self.k >= 1, ">= 1")
        _require("temperature", self.temperature, self.temperature > 0, "> 0")


@dataclass(frozen=True)
class AttentiveSettings:
    """The attentive probe."""

    batch_size: int | None = None
    """Images per step; None: 1024, or all if there are fewer."""

    def __post_init__(self) -> None:
        _require("batch-size", self.batch_size, self.batch_size is None or self.batch_size >= 2, ">= 2")


@dataclass(frozen=True)
class FewshotSettings:
    """Classification from few labelled images."""

    shots: tuple[int, ...] = (1, 5, 10)
    """Labelled images of each class; one result for each number."""
    draws: int = 5
    """Repetitions with other labelled images."""

    def __post_init__(self) -> None:
        _require("shots", list(self.shots), bool(self.shots) and min(self.shots) >= 1, ">= 1")
        _require("draws", self.draws, self.draws >= 2, ">= 2, as one draw has no interval")


@dataclass(frozen=True)
class EvaluateSettings:
    """How frozen features are evaluated. A setting that none of the protocols reads is refused."""

    seed: int = 0
    """Random seed of held-out images, initial weights, batches and draws."""
    features: FeatureSettings = field(default_factory=FeatureSettings)
    pooling: PoolSettings = field(default_factory=PoolSettings)
    knn: KNNSettings = field(default_factory=KNNSettings)
    attentive: AttentiveSettings = field(default_factory=AttentiveSettings)
    fewshot: FewshotSettings = field(default_factory=FewshotSettings)


def _require(option: str, value: object, fits: bool, bound: str) -> None:
    if not fits:
        raise MapetError(f"--{option} must be {bound}, got {value}.")
