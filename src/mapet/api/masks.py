"""The class of each pixel of images without masks, by a segmentation model."""

import json
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from mapet.api.journal import identity, unreadable_note
from mapet.api.segment import load_segmenter
from mapet.config.flat import updated
from mapet.config.use import MasksSettings
from mapet.utils.errors import MapetError, reason
from mapet.utils.io import load_json, read_json, replace_file, require_free, writing
from mapet.utils.lock import Lock
from mapet.utils.log import log
from mapet.utils.owned import require_apart

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mapet.data.dataset import ImageDataset
    from mapet.evals.upernet import Segmenter

    Labels = NDArray[np.uint8]

FORMAT, ABOUT = "mapet masks 1", "masks.json"
AGAIN = "delete it, and run the same command again."


class Mask(NamedTuple):
    """The mask of one image.

    Attributes:
        image_id: the path below the folder, the path as it was given, or the index of an image in memory.
        labels: (height, width) uint8, indices of the classes.
    """

    image_id: str
    labels: "Labels"


class Masks:
    """The masks of all readable images, in sequence; those of a folder are read when they are used.

    Attributes:
        classes: class names.
        unreadable: reason for each image without a mask, by image id.
        folder: that of the PNG files; None in memory.
    """

    def __init__(
        self,
        classes: Sequence[str],
        unreadable: dict[str, str],
        ids: Sequence[str],
        read: "Callable[[str], Labels]",
        folder: Path | None = None,
    ) -> None:
        self.classes, self.unreadable, self.folder = tuple(classes), unreadable, folder
        self._ids, self._read = ids, read

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[Mask]:
        return (Mask(image_id, self._read(image_id)) for image_id in self._ids)

    def __getitem__(self, index: int) -> Mask:
        image_id = self._ids[index]
        return Mask(image_id, self._read(image_id))


def masks(
    model: "str | Path | Segmenter",
    images: Any,
    out: str | Path | None = None,
    *,
    settings: MasksSettings | None = None,
    **changes: Any,
) -> Masks:
    """The class of each pixel, in memory, or as PNG files in a folder, which continues an interrupted call.

    Images are scaled and segmented by sliding windows as in the tests of the training; masks have their own size. The
    folder holds a file for each image, at its path with the suffix .png and the values 1, 2, … for the lines of
    ``classes.txt``.

    >>> mapet.masks("runs/segmenter", "photo.jpg")[0].labels

    Args:
        model: a run of ``segment``, an export of one, or what ``load_segmenter`` returned.
        images: as for ``predict``.
        out: folder; None: in memory.
        settings: the defaults, without any.
        changes: settings by name, for instance ``stride=128``.

    Raises:
        MapetError: not a segmentation model, images or settings that do not fit, no readable image, two images for
            the same file, or a folder in use.
    """
    from mapet.api.embed import encoder_hash
    from mapet.data.given import open_images
    from mapet.evals.upernet import Segmenter, require_stride

    s = updated(settings or MasksSettings(), **changes)
    if out is not None:
        require_apart(out, FROM=_path(model), images=_path(images))
    segmenter = load_segmenter(model) if isinstance(model, str | Path) else model
    if not isinstance(segmenter, Segmenter):
        raise MapetError(f"This {type(segmenter).__name__} makes no masks: give what load_segmenter returns.")
    require_stride(s.stride, segmenter)
    source = open_images(images, s.split, s.max_pixels)
    if out is None:
        found: dict[str, Labels] = {}
        bad = _segment(segmenter, source, s, found.__setitem__, lambda _: False)
        return Masks(segmenter.classes, bad, list(found), found.__getitem__)
    folder, files = Path(out).expanduser(), _files(source)
    about: dict[str, Any] = {"format": FORMAT, "segmenter": encoder_hash(segmenter), "classes": list(segmenter.classes)}
    about |= {"stride": s.stride, **identity(source)}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(folder, "writing into")
    try:
        _begin(folder, about)
        bad = _segment(
            segmenter,
            source,
            s,
            lambda image_id, labels: _write(folder / files[image_id], labels),
            lambda image_id: (folder / files[image_id]).exists(),
        )
    finally:
        lock.release()
    ids = [image_id for image_id in files if image_id not in bad]
    return Masks(segmenter.classes, bad, ids, lambda image_id: _read(folder / files[image_id]), folder)


def verify(folder: Path) -> None:
    """Read all masks of a folder.

    Raises:
        MapetError: one that is damaged, has other labels than the classes, or other class names.
    """
    from mapet.data.segmentation import CLASSES, read_lines

    names = read_json(folder / ABOUT, "a folder of masks").get("classes")
    if not isinstance(names, list) or read_lines(folder / CLASSES, "class name") != tuple(names):
        raise MapetError(f"{folder / CLASSES} and {folder / ABOUT} name other classes: restore them.")
    for path in sorted(folder.rglob("*.png")):
        try:
            highest = int(_read(path).max())
        except (OSError, ValueError, SyntaxError) as error:
            raise MapetError(f"{path} is damaged ({reason(error)}): {AGAIN}") from error
        if highest >= len(names):
            raise MapetError(f"{path} has labels other than 1 … {len(names)}: {AGAIN}")


def _path(value: Any) -> str | None:
    return str(value) if isinstance(value, str | Path) else None


def _files(source: "ImageDataset") -> dict[str, PurePosixPath]:
    """The file of each image, by image id: its path below the folder, or the name of a path that was given alone."""
    from mapet.data.given import GivenImages

    files, owners = dict[str, PurePosixPath](), dict[PurePosixPath, str]()
    for image_id in map(source.image_id, range(len(source))):
        path = PurePosixPath(image_id).with_suffix(".png")
        files[image_id] = path = PurePosixPath(path.name) if isinstance(source, GivenImages) else path
        if (other := owners.setdefault(path, image_id)) != image_id:
            raise MapetError(f"{other} and {image_id} would have the same mask {path}: give them one by one.")
    return files


def _begin(folder: Path, about: dict[str, Any]) -> None:
    """Claim an empty folder; refuse one that holds something else.

    Raises:
        MapetError: as said.
    """
    from mapet.data.segmentation import CLASSES

    found = load_json(folder / ABOUT)
    if found is None:
        require_free(folder, [f"{ABOUT}.part"])
        replace_file(folder / ABOUT, json.dumps(about, indent=1) + "\n")
    elif found != about:
        raise MapetError(f"--out {folder} holds masks of another model or of other images: give another --out.")
    if not (folder / CLASSES).exists():
        replace_file(folder / CLASSES, "\n".join(about["classes"]) + "\n")


def _segment(
    segmenter: "Segmenter",
    source: "ImageDataset",
    s: MasksSettings,
    keep: "Callable[[str, Labels], None]",
    done: Callable[[str], bool],
) -> dict[str, str]:
    """Segment the images that are not done yet; returns the reasons of the unreadable ones.

    Raises:
        MapetError: too many unreadable images, or no readable one.
    """
    import numpy as np

    from mapet.data.image import UnreadableImage
    from mapet.data.unreadable import UnreadableImages
    from mapet.engine.distributed import pick_device
    from mapet.engine.progress import Meter
    from mapet.evals.segmentation import segmented, shown

    device, count = pick_device(s.accelerator), len(source)
    segmenter.to(device).eval()
    bad = UnreadableImages(count, s.max_bad_fraction)
    with Meter("masks", count) as meter:
        for i in range(count):
            image_id = source.image_id(i)
            if done(image_id):
                continue
            try:
                image = source.read(i).convert("RGB")
            except UnreadableImage as error:
                bad.add(image_id, str(error))
                continue
            size = image.height, image.width
            labels = segmented(segmenter, shown(image, segmenter).to(device), size, s.stride)
            keep(image_id, labels.cpu().numpy().astype(np.uint8))
            if meter.due(i + 1):
                meter.update(i + 1)
    if len(bad) == count:
        raise MapetError(f"No image can be read: {bad.note()}")
    if bad.reasons:
        log.info(f"note      {unreadable_note(bad.reasons, count, 'without a mask')}")
    return bad.reasons


def _write(path: Path, labels: "Labels") -> None:
    """A PNG file with one channel: 1 more than the indices, with colours for viewers."""
    from PIL import Image

    from mapet.data.shapes import PALETTE

    image, content = Image.fromarray(labels + 1), BytesIO()
    image.putpalette(PALETTE)
    image.save(content, "PNG")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content.getvalue())


def _read(path: Path) -> "Labels":
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image).astype(np.uint8) - 1
