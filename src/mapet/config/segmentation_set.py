"""A file that names the folders of a segmentation set."""

from typing import Annotated

from pydantic import Field

from mapet.config.setting import PathText, require, settings


@settings
class Pairs:
    """A folder of images and one of masks; a pair has the same path below both, but for the suffix."""

    images: PathText = ""
    """Folder of images, nested in any way."""
    masks: PathText = ""
    """Folder of masks."""
    names: PathText | None = None
    """Text file with the names of the pairs to use, one a line, without suffix; None: all images."""

    def __post_init__(self) -> None:
        require(
            (bool(self.images), "--images is missing: name a folder of images."),
            (bool(self.masks), "--masks is missing: name a folder of masks."),
        )


@settings
class SetFile:
    """What ``--data SET.yaml`` names; paths are relative to the file.

    Raises:
        MapetError: on creation: neither or both of ``classes`` and ``class_file``, or a value that is refused.
    """

    train: Pairs
    """Training pairs."""
    test: Pairs | None = None
    """Test pairs; None: ``test_share`` of the training pairs, which are not trained on then."""
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the training pairs that is tested where ``test`` is None; the same ones for every seed."""
    classes: tuple[str, ...] = ()
    """Class names in the sequence of the labels."""
    class_file: PathText | None = None
    """Text file with these names, one a line."""
    reduce_zero_label: bool = True
    """Label 0 is ignored and the classes begin at 1; false: they begin at 0. 255 is always ignored."""
    image_suffix: str | None = None
    """How the names of image files end, such as _leftImg8bit.png; None: as any image."""
    mask_suffix: str = ".png"
    """How the names of mask files end."""

    def __post_init__(self) -> None:
        require((bool(self.classes) != bool(self.class_file), "give either --classes or --class-file."))
