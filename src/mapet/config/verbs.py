"""Settings of the verbs that neither pre-train nor fine-tune: one dataclass a verb."""

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from mapet.config.recipe import Accelerator, Model, Recipe, Runtime, Tokenizer
from mapet.config.setting import Count, Option, PathText, Seed, Share, require, settings
from mapet.config.training import MAX_PIXELS

BATCH_SIZE = 64  # images that a teacher or a tokenizer sees at a time


def comma_separated(value: Any) -> Any:
    """[3, 17] → "3,17"."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


@settings
class TokenizeSettings:
    """Settings of ``tokenize``."""

    image_size: Annotated[Count, Option(common=True)] = 224
    """Side of the student's images in pixels."""
    patch_size: Annotated[Count, Option(common=True)] = 16
    """Side of the student's patches in pixels."""
    max_images: Annotated[Count | None, Option(old=("limit",), common=True)] = None
    """Use only this many images, chosen at random; None: all."""
    max_pixels: Count = MAX_PIXELS
    """Largest number of pixels of an image; larger ones are unreadable. Decoding takes about 8 bytes for each."""
    draft: Count | None = None
    """Decode each JPEG file at the smallest of 1/8, 1/4, 1/2 and 1 of its size whose shorter side has so many pixels;
    None: at its size. Large photographs load faster; pixels differ slightly, so tokens must be made with the same."""
    seed: Seed = 0
    """Random seed of the choice of images and of k-means."""
    batch_size: Count = BATCH_SIZE
    """Images that the tokenizer sees at a time, in each process."""
    accelerator: Annotated[Accelerator, Option(common=True)] = "auto"
    """Device type; auto: the best available."""
    workers: Annotated[int | None, Field(ge=0), Option(common=True)] = None
    """Processes that decode images; None: up to 8 with a GPU (4 with mps), none on a CPU."""
    max_bad_fraction: Annotated[Share, Option(old=("max_bad",))] = 0.01
    """Largest fraction of images that may be unreadable."""
    tokenizer: Tokenizer = field(default_factory=Tokenizer)

    @property
    def runtime(self) -> Runtime:
        """How the images are read."""
        return Runtime(accelerator=self.accelerator, workers=self.workers, max_bad_fraction=self.max_bad_fraction)

    def recipe(self, data: str) -> Recipe:
        """A recipe with these settings: what a pre-training on ``data`` would tokenize."""
        return Recipe(
            data=data,
            max_images=self.max_images,
            max_pixels=self.max_pixels,
            draft=self.draft,
            seed=self.seed,
            model=Model(image_size=self.image_size, patch_size=self.patch_size),
            tokenizer=self.tokenizer,
        )


@settings
class FitTokenizerSettings(TokenizeSettings):
    """Settings of ``fit_tokenizer``."""

    tokenizer: Tokenizer = field(default_factory=lambda: Tokenizer(restarts=5))
    grid: tuple[int, int] | None = None
    """Rows and columns of patches, equally many; None: image size / patch size."""

    def __post_init__(self) -> None:
        rows, columns = self.grid or (1, 1)
        wanted = "two equal numbers >= 1, as all students see square images"
        require((rows == columns >= 1, f"--grid must be {wanted}, got {rows} {columns}."))


@settings
class ImportTokenizerSettings:
    """Settings of ``import_tokenizer``."""

    image_size: int | None = None
    """Side of its images in pixels; None: 112 for dalle, else 224 (a vqgan f8 needs 112 for 14 x 14 tokens)."""
    patch_size: Count = 16
    """Side of its patches in pixels (vqkd only; the other weights determine theirs)."""
    heads: Count = 12
    """Attention heads (vqkd only)."""


@settings
class InspectTokenizerSettings:
    """Settings of ``inspect_tokenizer``."""

    max_images: Annotated[Count | None, Option(old=("limit",), common=True)] = 10_000
    """Use only this many images, chosen at random; None: all (8 bytes of memory for each of their patches)."""
    max_pixels: Count = MAX_PIXELS
    """Largest number of pixels of an image; larger ones are unreadable. Decoding takes about 8 bytes for each."""
    num_codes: Annotated[int, Field(ge=0, le=100), Option(old=("codes",), common=True)] = 8
    """Codes to show, drawn at random from those in use."""
    show: Annotated[str, BeforeValidator(comma_separated), Option(common=True)] = ""
    """More codes to show, as 3,17,99."""
    compare_with: Annotated[PathText | None, Option(old=("against",), common=True)] = None
    """Folder of a second tokenizer, for instance of another seed, to compare the tokens with."""
    teacher_weights: PathText | None = None
    """Local file with the teacher's weights, for a codebook that was fitted with such a file."""
    compare_with_teacher_weights: Annotated[PathText | None, Option(old=("against_teacher_weights",))] = None
    """The same for the second tokenizer."""
    seed: Seed = 0
    """Random seed."""
    accelerator: Annotated[Accelerator, Option(common=True)] = "auto"
    """Device type; auto: the best available."""
    workers: Annotated[int | None, Field(ge=0), Option(common=True)] = None
    """Processes that decode images; None: up to 8 with a GPU (4 with mps), none on a CPU."""
    max_bad_fraction: Annotated[Share, Option(old=("max_bad",))] = 0.01
    """Largest fraction of images that may be unreadable."""

    @property
    def runtime(self) -> Runtime:
        """How the images are read."""
        return Runtime(accelerator=self.accelerator, workers=self.workers, max_bad_fraction=self.max_bad_fraction)


@settings
class PackSettings:
    """Settings of ``pack``."""

    form: Annotated[Literal["uint8", "jpeg"], Option(common=True)] = "uint8"
    """uint8 (pixels of one view) or jpeg (whole images)."""
    size: Annotated[int, Field(ge=1, le=4096), Option(common=True)] = 224
    """Side of the view, or the largest shorter side of a JPEG, in pixels."""
    quality: Annotated[int | None, Field(ge=1, le=100)] = None
    """JPEG quality, 1 to 100; None: 95."""
    max_images: Annotated[Count | None, Option(old=("limit",), common=True)] = None
    """Pack only this many images of each split, chosen at random; None: all."""
    max_pixels: Count = MAX_PIXELS
    """Largest number of pixels of an image; larger ones are unreadable. Decoding takes about 8 bytes for each."""
    seed: Seed = 0
    """Random seed of the choice by --max-images."""
    workers: Annotated[int | None, Field(ge=0), Option(common=True)] = None
    """Processes that decode images; None: one for each core."""
    max_bad_fraction: Annotated[Share, Option(old=("max_bad",))] = 0.01
    """Largest fraction of images that may be unreadable."""
