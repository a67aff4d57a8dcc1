"""The classes of images without labels, by a fine-tuned classifier."""

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from mapet.api.encoders import load_classifier
from mapet.config.flat import updated
from mapet.config.use import PredictSettings
from mapet.utils.errors import MapetError
from mapet.utils.io import require_replaceable
from mapet.utils.log import log

if TYPE_CHECKING:
    from torch import Tensor

    from mapet.api.journal import Journal, Line, Rows
    from mapet.method.encoder import Classifier

HEADER = re.compile(r"image,class_1,probability_1(,class_\d+,probability_\d+)*,unreadable")


class Prediction(NamedTuple):
    """The most probable classes of one image.

    Attributes:
        image_id: the path below the folder, the path as it was given, or the index of an image in memory.
        classes: names, the most probable first.
        probabilities: of these classes.
    """

    image_id: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


class Predictions(Sequence[Prediction]):
    """The predictions of all readable images, in sequence; those of a file are read when they are used.

    Attributes:
        classes: names of all classes, in the order of the logits.
        unreadable: reason for each image without a prediction, by image id.
        path: the CSV file; None in memory.
    """

    def __init__(
        self,
        classes: Sequence[str],
        unreadable: Mapping[str, str],
        count: int,
        read: Callable[[], Iterator[Prediction]],
        path: Path | None = None,
    ) -> None:
        self.classes, self.unreadable, self.path = tuple(classes), dict(unreadable), path
        self._count, self._read = count, read

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Prediction]:
        return self._read()

    @overload
    def __getitem__(self, index: int) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Prediction]: ...
    def __getitem__(self, index: int | slice) -> Prediction | Sequence[Prediction]:
        return self._rows[index]

    @cached_property
    def _rows(self) -> list[Prediction]:
        return list(self._read())


def predict(
    model: "str | Path | Classifier",
    images: Any,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    settings: PredictSettings | None = None,
    **changes: Any,
) -> Predictions:
    """The most probable classes of images: in memory, or in a CSV file, which continues an interrupted call.

    Images are cropped, resized and normalised as by the tests of the fine-tuning.

    >>> mapet.predict("runs/classifier", "photo.jpg")[0].classes

    Args:
        model: a fine-tuning, an export of one, a checkpoint file with a head, or what ``load_classifier`` returned.
        images: a folder, packed or not, ``"cifar10"``, a file, or one or several paths, PIL images, uint8 arrays
            (height, width, channels) or tensors (channels, height, width) of uint8 or float in 0 … 1.
        out: CSV file; None: in memory.
        overwrite: replace an earlier file of predictions.
        settings: the defaults, without any.
        changes: settings by name, for instance ``top_k=1``.

    Raises:
        MapetError: a model without a head, images or settings that do not fit, no readable image, or a file in the
            way.
    """
    from mapet.api.embed import encoder_hash
    from mapet.api.journal import Journal, collect, fill, identity, unreadable_note
    from mapet.api.model_pass import ModelPass
    from mapet.data.given import open_images
    from mapet.method.encoder import Classifier

    s = updated(settings or PredictSettings(), **changes)
    path = None if out is None else Path(out).expanduser()
    if path is not None:
        require_replaceable(path, overwrite, is_ours)
    classifier = load_classifier(model, num_heads=s.num_heads) if isinstance(model, str | Path) else model
    if not isinstance(classifier, Classifier):
        raise MapetError(
            f"This {type(classifier).__name__} has no classifier's head: give what load_classifier returns."
        )
    names, k = _class_names(classifier, model), min(s.top_k, classifier.num_classes)
    crop_pct = classifier.crop_pct if s.crop_pct is None else s.crop_pct
    run = ModelPass(open_images(images, s.split, s.max_pixels), classifier, crop_pct, _most_probable(classifier, k), s)
    if path is None:
        lines, rows = collect(run, "predict")
        found = list(_named(lines, rows, names))
        made = Predictions(names, dict(line for line in lines if line[1]), len(found), lambda: iter(found))
    else:
        about = {"classifier": encoder_hash(classifier), "classes": names, "top_k": k, "crop_pct": crop_pct}
        about |= identity(run.source)
        journal = Journal(path, about, run.source, (2 * k,), s.batch_size, overwrite)
        fill(run, "predict", journal, lambda part: _write(journal, part, names, k))
        made = Predictions(names, dict(journal.unreadable), journal.readable, lambda: _read(path), path)
    if made.unreadable:
        log.info(f"note      {unreadable_note(made.unreadable, len(run.source), 'without a prediction')}")
    return made


def _most_probable(classifier: "Classifier", k: int) -> "Callable[[Tensor], Tensor]":
    """The function from images to (B, 2 k): k classes, exact in float32, and their probabilities."""
    import torch

    def compute(images: "Tensor") -> "Tensor":
        top = classifier(images).softmax(dim=1).topk(k, dim=1)
        return torch.cat([top.indices.float(), top.values], dim=1)

    return compute


def _class_names(classifier: "Classifier", model: Any) -> list[str]:
    """The recorded names, or else those of the run's images, or else the numbers, which is logged."""
    from mapet.config.finetune import FinetuneRecipe
    from mapet.config.recipe import read
    from mapet.data.dataset import open_dataset

    count = classifier.num_classes
    if len(classifier.classes) == count:
        return list(classifier.classes)
    if isinstance(model, str | Path) and (recipe := Path(model).expanduser() / "recipe.yaml").is_file():
        with suppress(MapetError):
            data = read(recipe, FinetuneRecipe).data
            if len(names := open_dataset(data).classes) == count:
                log.info(f"note      the classifier does not name its classes; the names are those of {data}")
                return list(names)
    log.info(f"note      the classifier does not name its classes: they are numbers, 0 … {count - 1}")
    return [str(number) for number in range(count)]


def _named(lines: "Sequence[Line]", rows: "Rows", names: Sequence[str]) -> Iterator[Prediction]:
    k = rows.shape[1] // 2
    ids = [image_id for image_id, reason in lines if not reason]
    for image_id, row in zip(ids, rows.tolist(), strict=True):
        yield Prediction(image_id, tuple(names[int(label)] for label in row[:k]), tuple(row[k:]))


def _write(journal: "Journal", path: Path, names: Sequence[str], k: int) -> None:
    """One line per image, in sequence; that of an unreadable one has no classes, but the reason."""
    import numpy as np

    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        numbers = range(1, k + 1)
        writer.writerow(["image", *(f"{name}_{i}" for i in numbers for name in ("class", "probability")), "unreadable"])
        for lines, rows in journal.chunks():
            found = _named(lines, rows, names)
            for image_id, reason in lines:
                cells: list[Any] = [""] * 2 * k
                if not reason:
                    one = next(found)
                    cells = [cell for pair in zip(one.classes, one.probabilities, strict=True) for cell in pair]
                writer.writerow([image_id, *(np.float32(c) if isinstance(c, float) else c for c in cells), reason])


def _read(path: Path) -> Iterator[Prediction]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        lines = csv.reader(file)
        next(lines)
        for image_id, *cells, reason in lines:
            if not reason:
                yield Prediction(image_id, tuple(cells[::2]), tuple(map(float, cells[1::2])))


def is_ours(path: Path) -> bool:
    """Whether ``predict`` wrote the file, by its header."""
    with suppress(OSError, ValueError), path.open(encoding="utf-8") as file:
        return HEADER.fullmatch(file.readline().rstrip("\n")) is not None
    return False
