"""Compose a segmentation set: images with alpha over photographs, classes by folder."""

from collections.abc import Iterator, Mapping, Sequence
from colorsys import hsv_to_rgb
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from warnings import catch_warnings, simplefilter

import numpy as np

from mapet.data.folder import printable
from mapet.data.segmentation import CLASSES, IMAGES, MASKS, SPLITS
from mapet.utils.errors import MapetError, reason
from mapet.utils.io import require_folder, require_free
from mapet.utils.owned import Tree, discard
from mapet.utils.rng import randint, random_bits, uniform

if TYPE_CHECKING:
    from PIL import Image

BACKGROUND = "background"  # label 1
COVERED = (0.05, 0.95)  # share of a shape's pixels that are opaque
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
MOST = 254  # classes beside the background
LARGEST = 2**22  # pixels of a shape: others are left out
CANDIDATES = 100  # files of a class that are looked at
OPAQUE = 128  # alpha from which a pixel belongs to the shape
SCALE = (0.3, 0.7)  # longer side of a shape, in sides of the image
HELD_OUT = 5  # every fifth shape and photograph is for the test split only
PALETTE = [
    round(255 * part) for i in range(256) for part in hsv_to_rgb(i * 0.618 % 1, 0.7 * (i > 1), 0.2 + 0.7 * (i > 1))
]
PART = ".mapet-part"  # what is being written
TREE: Tree = {"images|annotations": {"training|validation": {r"\d{6,}\.png": None}}, r"classes\.txt": None}
PICK, PLACE, HOLD = 1, 2, 3  # salts of the random draws


def compose_shapes(
    shapes: str | Path,
    photographs: str | Path,
    out: str | Path,
    *,
    classes: int = 10,
    train: int = 1000,
    test: int = 250,
    size: int = 224,
    objects: int = 3,
    seed: int = 0,
) -> Path:
    """Write a segmentation set in ADE20K's layout; label 1 is the photograph, 2 … are the classes.

    A shape or photograph appears in one split only. The same arguments and files give the same images.

    Args:
        shapes: folder whose sub-folders are classes, with images with alpha nested in any way.
        photographs: folder of images, nested in any way.
        out: new or empty folder.
        classes: the sub-folders with the most usable images.
        train, test: images of the splits.
        size: side of the images in pixels.
        objects: most shapes of an image, at least one.
        seed: random seed.

    Returns:
        ``out``.

    Raises:
        MapetError: numbers below 1, too few classes, no photographs, or files in ``out``.
    """
    for name, value in {"classes": classes, "train": train, "test": test, "size": size, "objects": objects}.items():
        if value < 1:
            raise MapetError(f"--{name} must be >= 1, got {value}.")
    if classes > MOST:
        raise MapetError(f"--classes must be <= {MOST}, the labels of an 8-bit mask, got {classes}.")
    folder, photos = Path(out).expanduser(), _split(list(_files(require_folder(photographs, "--photographs"))), seed)
    if not all(photos.values()):
        raise MapetError(f"--photographs {photographs} must hold two images or more.")
    found = _categories(shapes, classes, seed)
    require_free(folder, [PART])
    with _appearing_whole(folder) as part:
        _write(part, photos, found, {"train": train, "test": test}, size, objects, seed)
    return folder


@contextmanager
def _appearing_whole(folder: Path) -> Iterator[Path]:
    """A folder whose content is moved into ``folder`` when the block ends, and deleted if it fails."""
    part = folder / PART
    discard(part, TREE)  # of a call that was killed
    part.mkdir(parents=True)
    try:
        yield part
        for path in sorted(part.iterdir()):  # the images last: without them it is not a set
            path.rename(folder / path.name)
    finally:
        discard(part, TREE)


def _write(
    folder: Path,
    photos: Mapping[str, Sequence[Path]],
    found: Mapping[str, Mapping[str, Sequence[Path]]],
    counts: Mapping[str, int],
    size: int,
    objects: int,
    seed: int,
) -> None:
    """Write the images and masks of both splits, and the names of the classes."""
    for split, count in counts.items():
        for part in (IMAGES, MASKS):
            (folder / part / SPLITS[split]).mkdir(parents=True)
        for i in range(count):
            image, mask = _composed(
                photos[split], [of[split] for of in found.values()], size, objects, (seed, len(split), i)
            )
            image.save(folder / IMAGES / SPLITS[split] / f"{i:06}.png")
            mask.putpalette(PALETTE)  # only for whoever looks at it
            mask.save(folder / MASKS / SPLITS[split] / f"{i:06}.png")
    (folder / CLASSES).write_text("\n".join([BACKGROUND, *map(printable, found)]) + "\n", encoding="utf-8")


def _files(folder: str | Path) -> Iterator[Path]:
    return (
        path
        for path in sorted(Path(folder).expanduser().rglob("*"))
        if path.suffix.lower() in SUFFIXES and path.is_file()
    )


def _candidates(folder: Path, seed: int) -> list[Path]:
    """At most ``CANDIDATES`` files, chosen at random, by name."""
    files = list(_files(folder))
    order = sorted(range(len(files)), key=lambda i: int(random_bits(seed, PICK, i)))
    return [files[i] for i in sorted(order[:CANDIDATES])]


def _categories(shapes: str | Path, classes: int, seed: int) -> dict[str, dict[str, list[Path]]]:
    """Class → split → files of usable shapes; classes by name."""
    root, found = require_folder(shapes, "--shapes"), {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        parts = _split([path for path in _candidates(folder, seed) if _cutout(path)], seed)
        if all(parts.values()):
            found[folder.name] = parts
    if len(found) < classes:
        raise MapetError(
            f"--shapes {shapes} has {len(found)} sub-folders with two or more images with a usable alpha channel, "
            f"and --classes is {classes}: lower it."
        )
    most = sorted(found, key=lambda name: (-sum(map(len, found[name].values())), name))[:classes]
    return {name: found[name] for name in sorted(most)}


def _split(files: list[Path], seed: int) -> dict[str, list[Path]]:
    """A fifth of the files, at least one, for the test split."""
    order = sorted(range(len(files)), key=lambda i: int(random_bits(seed, HOLD, i)))
    held = set(order[: -(-len(files) // HELD_OUT)])
    return {
        "train": [path for i, path in enumerate(files) if i not in held],
        "test": [path for i, path in enumerate(files) if i in held],
    }


def _cutout(path: Path) -> "Image.Image | None":
    """The RGBA image, cropped to what is opaque; None where it is not readable or its alpha says nothing."""
    from PIL import Image

    with suppress(OSError, ValueError, SyntaxError, Image.DecompressionBombError), catch_warnings():
        simplefilter("ignore")  # of palettes with transparency, and of large images, which are left out
        with Image.open(path) as image:
            if image.width * image.height > LARGEST or not (
                image.mode in ("RGBA", "LA") or "transparency" in image.info
            ):
                return None
            shape = image.convert("RGBA")
        opaque = np.asarray(shape.getchannel("A")) >= OPAQUE
        if COVERED[0] <= opaque.mean() <= COVERED[1]:
            return shape.crop(Image.fromarray(opaque).getbbox())
    return None


def _composed(
    photos: Sequence[Path], categories: Sequence[Sequence[Path]], size: int, objects: int, key: tuple[int, int, int]
) -> "tuple[Image.Image, Image.Image]":
    """One image and its mask."""
    from PIL import Image, ImageOps

    path = photos[int(randint(len(photos), *key, PICK))]
    try:
        with Image.open(path) as photo:
            image = ImageOps.fit(photo.convert("RGB"), (size, size))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise MapetError(f"{path} cannot be read: {reason(error)}. Take it out of --photographs.") from None
    mask = Image.new("L", (size, size), 1)
    for n in range(1 + int(randint(objects, *key, PLACE))):
        label = int(randint(len(categories), *key, PICK, n))
        files = categories[label]
        shape = _cutout(files[int(randint(len(files), *key, PICK, n, 1))])
        assert shape is not None
        x, y, scale = (float(uniform(*key, PLACE, n, axis)) for axis in range(3))
        longest = max(1, round(size * (SCALE[0] + scale * (SCALE[1] - SCALE[0]))))
        shape = ImageOps.contain(shape, (longest, longest))
        at = round(x * (size - shape.width)), round(y * (size - shape.height))
        image.paste(shape, at, shape)
        mask.paste(label + 2, at, shape.getchannel("A").point(lambda alpha: 255 * (alpha >= OPAQUE)))
    return image, mask
