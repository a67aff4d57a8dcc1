"""Settings of the verbs that neither pre-train nor fine-tune: one dataclass a verb."""

from dataclasses import dataclass, field
from typing import Any

from mapet.config.recipe import Model, Recipe, Runtime, Tokenizer
from mapet.utils.errors import MapetError

BATCH_SIZE = 64  # images that a teacher or a tokenizer sees at a time


def require(**limits: tuple[Any, bool, str]) -> None:
    """Refuse the first setting that does not fit: its value, whether it fits, and what it must be.

    Raises:
        MapetError: the option, what it must be, and its value.
    """
    for name, (value, fits, wanted) in limits.items():
        if not fits:
            raise MapetError(f"--{name.replace('_', '-')} must be {wanted}, got {value}.")


def _require_images(max_images: int | None, workers: int | None, max_bad_fraction: float) -> None:
    require(
        max_images=(max_images, max_images is None or max_images >= 1, ">= 1"),
        workers=(workers, workers is None or workers >= 0, ">= 0"),
        max_bad_fraction=(max_bad_fraction, 0 <= max_bad_fraction <= 1, "between 0 and 1"),
    )


@dataclass(frozen=True)
class TokenizeSettings:
    """Settings of ``tokenize``."""

    image_size: int = 224
    """Side of the student's images in pixels."""
    patch_size: int = 16
    """Side of the student's patches in pixels."""
    max_images: int | None = None
    """Use only this many images, chosen at random; None: all."""
    seed: int = 0
    """Random seed of the choice of images and of k-means."""
    batch_size: int = BATCH_SIZE
    """Images that the tokenizer sees at a time, in each process."""
    accelerator: str = "auto"
    """auto, cpu, cuda or mps."""
    workers: int | None = None
    """Processes that decode images; None: up to 8 with an accelerator, none on a CPU."""
    max_bad_fraction: float = 0.01
    """Largest fraction of images that may be unreadable."""
    tokenizer: Tokenizer = field(default_factory=Tokenizer)

    def __post_init__(self) -> None:
        require(batch_size=(self.batch_size, self.batch_size >= 1, ">= 1"))
        _require_images(self.max_images, self.workers, self.max_bad_fraction)

    @property
    def runtime(self) -> Runtime:
        """How the images are read."""
        return Runtime(accelerator=self.accelerator, workers=self.workers, max_bad_fraction=self.max_bad_fraction)

    def recipe(self, data: str) -> Recipe:
        """A recipe with these settings: what a pre-training on ``data`` would tokenize."""
        return Recipe(
            data=data,
            max_images=self.max_images,
            seed=self.seed,
            model=Model(image_size=self.image_size, patch_size=self.patch_size),
            tokenizer=self.tokenizer,
        )


@dataclass(frozen=True)
class FitTokenizerSettings(TokenizeSettings):
    """Settings of ``fit_tokenizer``."""

    tokenizer: Tokenizer = field(default_factory=lambda: Tokenizer(restarts=5))
    grid: tuple[int, int] | None = None
    """Rows and columns of patches, equally many; None: image size / patch size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grid is not None:
            rows, columns = self.grid
            fits = rows == columns >= 1
            require(grid=(f"{rows} {columns}", fits, "two equal numbers >= 1 (all students see square images)"))


@dataclass(frozen=True)
class ImportTokenizerSettings:
    """Settings of ``import_tokenizer``."""

    image_size: int | None = None
    """Side of its images in pixels; None: 112 for dalle, else 224 (a vqgan f8 needs 112 for 14 x 14 tokens)."""
    patch_size: int = 16
    """Side of its patches in pixels (vqkd only; the other weights determine theirs)."""
    heads: int = 12
    """Attention heads (vqkd only)."""


@dataclass(frozen=True)
class InspectTokenizerSettings:
    """Settings of ``inspect_tokenizer``."""

    max_images: int | None = 10_000
    """Use only this many images, chosen at random; None: all (8 bytes of memory for each of their patches)."""
    num_codes: int = 8
    """Codes to show, drawn at random from those in use."""
    show: str = ""
    """More codes to show, as 3,17,99."""
    compare_with: str | None = None
    """Folder of a second tokenizer, for instance of another seed, to compare the tokens with."""
    teacher_weights: str | None = None
    """Local file with the teacher's weights, for a codebook that was fitted with such a file."""
    compare_with_teacher_weights: str | None = None
    """The same for the second tokenizer."""
    seed: int = 0
    """Random seed."""
    accelerator: str = "auto"
    """auto, cpu, cuda or mps."""
    workers: int | None = None
    """Processes that decode images; None: up to 8 with an accelerator, none on a CPU."""
    max_bad_fraction: float = 0.01
    """Largest fraction of images that may be unreadable."""

    def __post_init__(self) -> None:
        _require_images(self.max_images, self.workers, self.max_bad_fraction)

    @property
    def runtime(self) -> Runtime:
        """How the images are read."""
        return Runtime(accelerator=self.accelerator, workers=self.workers, max_bad_fraction=self.max_bad_fraction)


@dataclass(frozen=True)
class PackSettings:
    """Settings of ``pack``."""

    form: str = "uint8"
    """uint8 (pixels of one view) or jpeg (whole images)."""
    size: int = 224
    """Side of the view, or the largest shorter side of a JPEG, in pixels."""
    quality: int | None = None
    """JPEG quality, 1 to 100; None: 95."""
    max_images: int | None = None
    """Pack only this many images of each split, chosen at random; None: all."""
    seed: int = 0
    """Random seed of the choice by --max-images."""
    workers: int | None = None
    """Processes that decode images; None: one for each core."""
    max_bad_fraction: float = 0.01
    """Largest fraction of images that may be unreadable."""

    def __post_init__(self) -> None:
        _require_images(self.max_images, self.workers, self.max_bad_fraction)
