"""Settings of ``mapet evaluate``, in the groups that its protocols read."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from mapet.config.recipe import Accelerator
from mapet.config.setting import Count, Seed, Share, settings
from mapet.config.training import MAX_PIXELS

Workers = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Pool = Literal["avg", "token", "avg+token"]
AtLeast2 = Annotated[int, Field(ge=2)]


@settings
class FeatureSettings:
    """Which images are encoded, and how."""

    max_images: Count | None = None
    """Use only this many training images, drawn by the run's seed, or by seed 0 if FROM is not a run; None: all."""
    max_pixels: Count = MAX_PIXELS
    """Largest number of pixels of an image; larger ones are unreadable. Decoding takes about 8 bytes for each."""
    random: bool = False
    """Evaluate the encoder of a pre-training run as it was before training."""
    num_heads: Count | None = None
    """Attention heads of a checkpoint file, which does not store them; None: width / 64."""
    accelerator: Accelerator = "auto"
    """auto, cpu, cuda or mps."""
    workers: Workers | None = None
    """Processes that decode images; None: up to 8 with a GPU (4 with mps), none on a CPU."""
    max_bad_fraction: Share = 0.01
    """Largest fraction of images that may be unreadable."""
    cache_gib: Positive = 16.0
    """GiB that the features of all images may take."""


@settings
class PoolSettings:
    """Which vector stands for an image."""

    pool: Pool = "avg"
    """Features: avg (mean of patches), token (class token) or avg+token (both, concatenated)."""


@settings
class KNNSettings:
    """Weighted k-nearest-neighbour classification."""

    k: Count = 20
    """Neighbours that vote."""
    temperature: Positive = 0.07
    """T of a neighbour's weight exp(cosine / T)."""


@settings
class AttentiveSettings:
    """The attentive probe."""

    batch_size: AtLeast2 | None = None
    """Images per step; None: 1024, or all if there are fewer."""


@settings
class FewshotSettings:
    """Classification from few labelled images."""

    shots: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 5, 10)
    """Labelled images of each class; one result for each number."""
    draws: AtLeast2 = 5
    """Repetitions with other labelled images."""


@settings
class EvaluateSettings:
    """How frozen features are evaluated. A setting that none of the protocols reads is refused."""

    seed: Seed = 0
    """Random seed of held-out images, initial weights, batches and draws."""
    features: FeatureSettings = field(default_factory=FeatureSettings)
    pooling: PoolSettings = field(default_factory=PoolSettings)
    knn: KNNSettings = field(default_factory=KNNSettings)
    attentive: AttentiveSettings = field(default_factory=AttentiveSettings)
    fewshot: FewshotSettings = field(default_factory=FewshotSettings)
