"""The report of a fine-tuning: scores, curves, confusion matrix, images of extreme predictions."""

from functools import partial
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.api.report.sections import RunFiles, filled, readable, section
from mapet.config.report import ReportSettings
from mapet.viz.report import charts
from mapet.viz.report.page import Code, Page, Part, Text, drawn, image

if TYPE_CHECKING:
    from PIL import Image

    from mapet.api.predict import Predictions
    from mapet.data.dataset import ImageDataset

EXTREMES = 6  # images of each kind
SALT = 0x5246


def page(folder: Path, s: ReportSettings) -> Page:
    """All sections; those that need model or data only with ``s.images``."""
    files = RunFiles(folder)
    tests = _Tests(files, s)
    sections = [
        section("Scores", files.scores),
        section("Training", partial(files.curves, "Loss and training accuracy over steps")),
        *([section("Test images", tests.parts)] if s.images else []),
        section("Use the classifier", partial(_usage, folder.resolve().name)),
        section("Recipe, command and versions", files.origin),
    ]
    return Page(f"Fine-tuning: {folder.resolve().name}", _lead(files), filled(sections), files.notes())


def _lead(files: RunFiles) -> str:
    from mapet.engine.progress import clock
    from mapet.utils.io import load_json

    about = load_json(files.run.classifier)
    classes = about.get("classes") if isinstance(about, dict) else None
    origin = about.get("from", "an encoder") if isinstance(about, dict) else "an encoder"
    kinds = f" of {len(classes):,} classes" if isinstance(classes, list) and classes else ""
    took = f" in {clock(files.seconds)}" if files.seconds else ""
    return f"A classifier{kinds}, trained from {origin}: {files.steps:,} steps{took}."


def _usage(name: str) -> list[Part]:
    return [
        Code(f'import mapet\n\nmapet.predict("{name}", "photo.jpg")[0]'),
        Code(f"mapet predict {name} photos --out predictions.csv\nmapet export {name} --to timm"),
    ]


class _Tests:
    """Predictions of some test images."""

    def __init__(self, files: RunFiles, s: ReportSettings) -> None:
        self.files, self.s = files, s

    def parts(self) -> list[Part]:
        """Confusion matrix, and the images of the least and the most confident predictions."""
        import numpy as np

        from mapet.api.predict import predict

        source, images = self._tests()
        found = predict(self.files.folder, list(images.values()), top_k=1, accelerator=self.s.accelerator)
        names = list(found.classes)
        pairs = [(source.label(index), names.index(one.classes[0])) for index, one in zip(images, found, strict=True)]
        counts = np.zeros((len(names), len(names)), np.int64)
        np.add.at(counts, tuple(np.array(pairs).T), 1)
        right = sum(true == predicted for true, predicted in pairs)
        few = f"{len(pairs):,} test images, {right / len(pairs):.1%} of them right"
        caption = f"{few}. Each row: how the images of a class are predicted."
        confusion = drawn(charts.confusion(counts, names), "Confusion matrix of the classes", caption)
        return [confusion, *self._extremes(list(images.values()), found, pairs)]

    def _tests(self) -> "tuple[ImageDataset, dict[int, Image.Image]]":
        """The test set, and the readable ones of some of its images, by index."""
        from mapet.config.file import read_run
        from mapet.config.finetune import FinetuneRecipe
        from mapet.data.dataset import train_and_test

        source = train_and_test(read_run(self.files.run.recipe, FinetuneRecipe).data)[1]
        some = islice(readable(source, self.s.seed, SALT), self.s.most)
        good = ((index, one) for index, one in some if one is not None)
        return source, dict(sorted(good, key=itemgetter(0)))

    def _extremes(self, images: "list[Image.Image]", found: "Predictions", pairs: list[tuple[int, int]]) -> list[Part]:
        from tempfile import TemporaryDirectory

        from mapet.viz.sheet import contact_sheet

        names, parts = list(found.classes), list[Part]()
        sure = [one.probabilities[0] for one in found]
        order = sorted(range(len(sure)), key=lambda i: -sure[i])
        wrong = [i for i in order if pairs[i][0] != pairs[i][1]][:EXTREMES]
        kinds = {"Wrong with the highest confidence": wrong, "Least confident": order[::-1][:EXTREMES]}
        with TemporaryDirectory() as folder:
            for number, (title, some) in enumerate(kinds.items()):
                if not some:
                    parts.append(Text(f"{title}: none."))
                    continue
                tiles = [(f"{names[pairs[i][1]]} {sure[i]:.0%}", f"true: {names[pairs[i][0]]}", images[i])
                         for i in some]  # fmt: skip
                path = contact_sheet(tiles, Path(folder) / f"{number}.png")
                parts.append(image(path, title, f"{title}: prediction above, true class below."))
        return parts
