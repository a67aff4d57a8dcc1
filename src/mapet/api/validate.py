"""Accuracy and calibration of a classifier on labelled images, also of some of its classes or with several labels."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.api.encoders import is_foreign_file, load_classifier
from mapet.api.trained_on import trained_on
from mapet.config.flat import updated
from mapet.config.validate import ValidateSettings
from mapet.utils.errors import MapetError, reason
from mapet.utils.log import log

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mapet.data.corrupt import Corrupted
    from mapet.data.dataset import ImageDataset
    from mapet.data.policy import Centre, Published
    from mapet.evals.score import Score
    from mapet.method.encoder import Classifier

IMAGENET = 1000  # classes
ILSVRC = re.compile(r"(?:.*/)?ILSVRC2012_val_(\d{8})[^/]*")


@dataclass(frozen=True)
class Validation:
    """What a classifier scores on one set of images.

    Attributes:
        scores: ``top1`` and, with more than five classes, ``top5``.
        ece: expected calibration error, 15 bins, in [0, 1].
        protocol: crop, classes and labels, in words.
        trained_on: so many of the images are training images of the fine-tuning; 0 also where that is not known.
    """

    scores: "dict[str, Score]"
    ece: float
    protocol: str
    trained_on: int = 0


@dataclass(frozen=True)
class Targets:
    """Images with their correct classes.

    Attributes:
        source: the images.
        columns: (S,) int64, the logits that are compared; None: all.
        labels: for each image its correct classes, as positions among these logits.
        text: classes and labels, in words.
    """

    source: "ImageDataset"
    columns: "Tensor | None"
    labels: Sequence[Sequence[int]]
    text: str


def validate(
    model: "str | Path | Classifier",
    data: str | Path,
    *,
    settings: ValidateSettings | None = None,
    **changes: Any,
) -> Validation:
    """Accuracy and calibration of a classifier on labelled images.

    >>> mapet.validate("vit_standard_base_patch16_224_KCLIP.tar", "imagenet").scores["top1"]

    A run or an export is tested as by its fine-tuning; a published checkpoint or timm model by timm's evaluation
    transform (the shorter side resized to size / crop_pct, bicubic, then the centre cropped).

    Args:
        model: a fine-tuning, an export of one, a checkpoint file with a head, a timm model, or what
            ``load_classifier`` returned.
        data: a folder with one sub-folder per class, split into train and test or not, or ``"cifar10"``. Sub-folders
            are named as the classes, by ImageNet's synsets, or by the classes' numbers, as ImageNetV2's.
        settings: the defaults, without any.
        changes: settings by name, for instance ``real="real.json"``.

    Raises:
        MapetError: a model without a head, images, labels or settings that do not fit, or no readable image.
    """
    s = updated(settings or ValidateSettings(), **changes)
    classifier, crops = open_classifier(model, s)
    targets = find_targets(classifier, data, s)
    seen = trained_on(model, targets.source)
    return replace(measure(classifier, targets, crops, s, "validate"), trained_on=seen)


def open_classifier(model: "str | Path | Classifier", s: ValidateSettings) -> "tuple[Classifier, Centre | Published]":
    """The classifier, and what it is shown of an image."""
    from mapet.data.policy import Centre, Published
    from mapet.method.encoder import Classifier

    classifier = load_classifier(model, num_heads=s.num_heads) if isinstance(model, str | Path) else model
    if not isinstance(classifier, Classifier):
        raise MapetError(
            f"This {type(classifier).__name__} has no classifier's head: give what load_classifier returns."
        )
    crop_pct = classifier.crop_pct if s.crop_pct is None else s.crop_pct
    height, width = classifier.img_size
    published = isinstance(model, str | Path) and (is_foreign_file(model) or not Path(model).expanduser().exists())
    return classifier, Published(crop_pct) if published and height == width else Centre(crop_pct)


def find_targets(classifier: "Classifier", data: str | Path, s: ValidateSettings) -> Targets:
    """The images of ``data`` with their correct classes.

    Raises:
        MapetError: no labels, unknown classes, or a file of labels that does not fit.
    """
    import torch

    from mapet.data.dataset import Subset, has_held_out, open_dataset, require_labels

    name = str(data)
    source = open_dataset(name, s.split or ("test" if has_held_out(name) else "train"), s.max_pixels)
    if s.real:
        found = _several_labels(Path(s.real).expanduser(), source, classifier.num_classes)
        counted = [i for i, labels in enumerate(found) if labels]
        text = f"{classifier.num_classes} classes, several labels each, {len(counted):,} of {len(found):,} images count"
        return Targets(Subset(source, counted, "labelled"), None, [found[i] for i in counted], text)
    require_labels(source)
    columns = _columns(source, classifier)
    if not s.subset or len(columns) == classifier.num_classes:
        labels = [(columns[source.label(i)],) for i in range(len(source))]
        return Targets(source, None, labels, f"{classifier.num_classes} classes")
    chosen = sorted(columns)
    labels = [(chosen.index(columns[source.label(i)]),) for i in range(len(source))]
    text = f"{len(chosen)} of {classifier.num_classes} classes, only their logits compared"
    return Targets(source, torch.tensor(chosen), labels, text)


def _columns(source: "ImageDataset", classifier: "Classifier") -> list[int]:
    """The logit of each class of the images: by name, by ImageNet's synset, or by number.

    Raises:
        MapetError: a class that the classifier does not have.
    """
    from timm.data import ImageNetInfo

    count, named = classifier.num_classes, classifier.classes
    known = [list(named)] if len(named) == count else []
    known += [ImageNetInfo().label_names()] if count == IMAGENET else []
    for names in (*known, [str(number) for number in range(count)]):
        if set(source.classes) <= set(names):
            return [names.index(name) for name in source.classes]
    names = known[0] if known else [f"0 … {count - 1}"]
    unknown = [name for name in source.classes if name not in names]
    raise MapetError(
        f"The classifier does not have the class {unknown[0]} of {source.name} ({len(unknown)} of "
        f"{len(source.classes)} are unknown): name the sub-folders as its classes ({', '.join(names[:3])}"
        f"{', …' if len(names) > 3 else ''}), or by their numbers."
    )


def _several_labels(path: Path, source: "ImageDataset", classes: int) -> list[list[int]]:
    """For each image its correct classes: a list in the sequence of ImageNet's validation files, or by file name.

    Raises:
        MapetError: a file of something else, or images that it does not name.
    """
    wanted = "give ReaL's real.json, or an object of file names with their classes"
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise MapetError(f"--real {path} cannot be read ({reason(error)}): {wanted}.") from None
    rows = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, list) and _are_classes(row, classes) for row in rows):
        raise MapetError(f"--real {path} does not hold a list of classes 0 … {classes - 1} for each image: {wanted}.")
    found: list[list[int]] = []
    for i in range(len(source)):
        image_id = source.image_id(i)
        number = int(match[1]) - 1 if (match := ILSVRC.fullmatch(image_id)) else -1
        labels = content.get(image_id.rpartition("/")[2]) if isinstance(content, dict) else None
        if isinstance(content, list) and 0 <= number < len(content):
            labels = content[number]
        if labels is None:
            raise MapetError(f"--real {path} has no entry for {image_id}: {wanted}.")
        found.append(labels)
    if not any(found):
        raise MapetError(f"--real {path} has no class for any image: {wanted}.")
    return found


def _are_classes(row: Sequence[Any], classes: int) -> bool:
    return all(type(label) is int and 0 <= label < classes for label in row)


def measure(
    classifier: "Classifier", targets: Targets, crops: "Centre | Published | Corrupted", s: ValidateSettings, label: str
) -> Validation:
    """Scores of all readable images; raises as ``ModelPass``."""
    import torch

    from mapet.api.journal import unreadable_note
    from mapet.api.model_pass import ModelPass
    from mapet.evals.robustness import best_ranks, calibration_error
    from mapet.evals.score import tops

    most = max(map(len, targets.labels))
    labels = torch.tensor([[*row, *[row[0]] * (most - len(row))] for row in targets.labels])
    run = ModelPass(targets.source, classifier, 1.0, _logits(classifier, targets.columns), s, crops)
    ranks, confidence, unreadable, done = [], [], dict[str, str](), 0
    for lines, rows in run(label):
        good = [done + i for i, (_, reason) in enumerate(lines) if not reason]
        unreadable |= {image_id: reason for image_id, reason in lines if reason}
        done += len(lines)
        if rows is not None:
            scores = torch.from_numpy(rows)
            ranks.append(best_ranks(scores, labels[good]))
            confidence.append(scores.double().softmax(dim=1).amax(dim=1))
    if unreadable:
        log.info(f"note      {unreadable_note(unreadable, len(targets.source), 'that do not count')}")
    found = torch.cat(ranks)
    count = classifier.num_classes if targets.columns is None else len(targets.columns)
    error = calibration_error(torch.cat(confidence), found == 0)
    return Validation(tops(found, count), error, f"{crops.text}, {targets.text}")


def _logits(classifier: "Classifier", columns: "Tensor | None") -> "Callable[[torch.Tensor], torch.Tensor]":
    """The function from images to the logits that are compared."""

    def compute(images: "Tensor") -> "Tensor":
        logits = classifier(images)
        return logits if columns is None else logits[:, columns.to(logits.device)]

    return compute
