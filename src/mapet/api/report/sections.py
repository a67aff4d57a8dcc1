"""Sections that all reports of runs share, made of the files in a run's folder."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.engine.run import Run
from mapet.utils.errors import MapetError, reason
from mapet.utils.io import load_json
from mapet.viz.report import charts
from mapet.viz.report.page import Code, Part, Section, Table, Text, drawn, image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from mapet.data.dataset import ImageDataset
    from mapet.engine.checkpoint import Checkpoint

TENTH = 10  # the first and the last tenth of the steps are compared
FLAT = 0.99  # of the first tenth's loss: a last one above it has learned nothing
FEWEST = 50  # steps that say something
MANY_BAD = 0.01  # share of unreadable images
JSON = {"scores.json": list, "provenance.json": list, "inputs.json": dict, "seconds.json": dict,
        "classifier.json": dict, "segmenter.json": dict}  # fmt: skip


def section(title: str, build: Callable[[], Sequence[Part]]) -> Section:
    """A section; what cannot be made is named with its reason."""
    try:
        return Section(title, build())
    except Exception as error:  # a report of a damaged folder has what is there
        return Section(title, [Text(f"Not available: {reason(error)}.")])


def text_of(path: Path) -> str:
    """A text file.

    Raises:
        MapetError: the file and why it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8").rstrip()
    except (OSError, UnicodeDecodeError) as error:
        raise MapetError(f"{path} cannot be read: {reason(error)}.") from error


def filled(sections: Sequence[Section]) -> list[Section]:
    """Those with content."""
    return [one for one in sections if one.parts]


def readable(source: "ImageDataset", seed: int, salt: int) -> "Iterator[tuple[int, Image.Image | None]]":
    """The indices of a data set in a sequence drawn by the seed, each with its image; None if that cannot be read."""
    import torch

    from mapet.data.image import UnreadableImage
    from mapet.utils.rng import random_bits

    for index in random_bits(seed, salt, torch.arange(len(source))).argsort().tolist():
        try:
            yield index, source.read(index)
        except UnreadableImage:
            yield index, None


class RunFiles:
    """What the files of a run say, without its model; each is read once, and may be missing or damaged."""

    def __init__(self, folder: Path) -> None:
        self.run, self.folder = Run(folder), folder

    @cached_property
    def columns(self) -> "dict[str, NDArray[np.float64]]":
        """The metrics; raises MapetError without any."""
        from mapet.viz.figures import read_columns

        return read_columns(self.run.metrics)

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Command, time, versions and machine of the first start."""
        found = load_json(self.folder / "provenance.json")
        first = found[0] if isinstance(found, list) and found else None
        return first if isinstance(first, dict) else {}

    @property
    def seconds(self) -> float | None:
        """Training time, as far as it is known."""
        return self._noted("seconds")

    @property
    def waited(self) -> float | None:
        """Seconds of it in which the steps waited for data; None in older runs."""
        return self._noted("waited")

    def _noted(self, name: str) -> float | None:
        found = load_json(self.folder / "seconds.json")
        value = found.get(name) if isinstance(found, dict) else None
        return float(value) if isinstance(value, (int, float)) else None

    @property
    def images(self) -> int | None:
        """Images of the data set that the run trains on, if that is recorded."""
        found = load_json(self.folder / "inputs.json")
        value = found.get("images") if isinstance(found, dict) else None
        return value if isinstance(value, int) else None

    @cached_property
    def _checkpoints(self) -> "list[Checkpoint | str]":
        """Each of the last checkpoints with its head alone, or why that cannot be read; the last first."""
        from mapet.engine.checkpoint import Checkpoint, exists
        from mapet.engine.generations import LAST, PREVIOUS, SHARDED

        found: list[Checkpoint | str] = []
        for path in (self.run.checkpoints / name for name in (LAST, SHARDED, PREVIOUS)):
            try:
                if exists(path):
                    found.append(Checkpoint(path))
            except MapetError as error:
                found.append(error.option_text)
        return found

    @cached_property
    def probes(self) -> list[dict[str, float]]:
        """What was measured on the way; empty without a valid file."""
        from mapet.api.probes import history

        return history(self.run)

    @cached_property
    def checkpoint(self) -> "Checkpoint | None":
        """The last checkpoint whose head can be read; None without any."""
        return next((one for one in self._checkpoints if not isinstance(one, str)), None)

    @cached_property
    def metrics_fault(self) -> str:
        """What is wrong with the metrics up to the checkpoint; empty without one."""
        from mapet.engine.metrics_file import fault

        found = self.checkpoint
        return fault(self.run.metrics, found.step, found.metrics) if found else ""

    @property
    def steps(self) -> int:
        """Completed steps: those of the checkpoint, or more if sound metrics go on; 0 without both."""
        known = self.checkpoint.step if self.checkpoint else 0
        try:
            return known if self.metrics_fault else max(known, int(self.columns["step"][-1]))
        except Exception:
            return known

    def damaged(self) -> list[str]:
        """A sentence for each file that is damaged or missing."""
        from mapet.api.probes import FILE

        found = [one for one in self._checkpoints if isinstance(one, str)]
        there = {name: kind for name, kind in JSON.items() if (self.folder / name).exists()}
        found += [f"{name} is damaged: what it holds is left out." for name, kind in there.items()
                  if not isinstance(load_json(self.folder / name), kind)]  # fmt: skip
        if (self.folder / FILE).exists() and not self.probes:
            found.append(f"{FILE} is damaged: what was measured on the way is left out.")
        if self.metrics_fault and self.run.metrics.exists():
            found.append(f"{self.run.metrics.name} is damaged: it {self.metrics_fault}.")
        elif not self.run.metrics.exists():
            lost = "it was lost" if self.checkpoint else "the run ended before its first step, or it was lost"
            found.append(f"{self.run.metrics.name} is missing: {lost}.")
        return found

    def tenths(self, name: str) -> tuple[float, float] | None:
        """Means of a column over the first and the last tenth of the steps; None without values."""
        import numpy as np

        values = None
        with suppress(MapetError):
            values = self.columns.get(name)
        if values is None or np.isnan(values).all():
            return None
        part = max(1, len(values) // TENTH)
        return float(np.nanmean(values[:part])), float(np.nanmean(values[-part:]))

    def curves(self, alt: str, guess: float | None = None) -> list[Part]:
        """The charts of loss and accuracy, of learning rate and gradient.

        Args:
            alt: what the first shows.
            guess: accuracy of the most frequent token of each position, drawn as a dashed line; None: none.
        """
        from mapet.viz.figures import loss_figure

        caption = "Light: each step; dark: running mean."
        if guess is not None:
            caption += f" Dashed: the most frequent token of each position, {guess:.1%}, which needs no image."
        return [drawn(loss_figure(self.columns, guess), alt, caption), *self.rates()]

    def rates(self) -> list[Part]:
        """The chart of learning rate and gradient."""
        chart = charts.rates(self.columns)
        return [drawn(chart, "Learning rate and norm of the gradient over steps", "As recorded in metrics.csv.")]

    def notes(self, loss: str = "loss") -> list[str]:
        """What looks wrong in the metrics and among the images."""
        import numpy as np

        found = self.damaged()
        with suppress(MapetError, KeyError):
            values = self.columns[loss]
            if not np.isfinite(values[~np.isnan(values)]).all():
                found.append("The loss has infinite values: lower --lr.")
            tenths = self.tenths(loss)
            if tenths and len(values) >= FEWEST and tenths[1] > FLAT * tenths[0]:
                found.append(
                    f"The loss is flat: {tenths[0]:.3f} in the first tenth of the steps, {tenths[1]:.3f} in the last."
                )
        bad = self.unreadable()
        if bad and self.images and bad > MANY_BAD * self.images:
            found.append(f"{bad:,} of {self.images:,} images cannot be read: see unreadable-images.txt.")
        return found

    def panels(self) -> list[Part]:
        """The first and the last panel of ``--panel-every``."""
        found = sorted((self.folder / "panels").glob("*.png"))
        caption = "From left to right: what is given, what is believed, the true tokens, the image."
        chosen = dict.fromkeys((*found[:1], *found[-1:]))
        return [image(path, f"Predicted and true tokens, {path.stem}", f"{path.stem}. {caption}") for path in chosen]

    def unreadable(self) -> int:
        """Images that could not be read."""
        try:
            return len(self.run.unreadable_images.read_bytes().splitlines())
        except OSError:
            return 0

    def origin(self) -> list[Part]:
        """Command, machine, versions and all settings."""
        found: list[Part] = []
        if about := self.provenance:
            rows = [(name, str(about[name])) for name in ("command", "time", "processor", "gpu", "system", "python")
                    if about.get(name)]  # fmt: skip
            packages = about.get("versions")
            if isinstance(packages, Mapping):
                rows.append(("versions", ", ".join(f"{name} {version}" for name, version in packages.items())))
            found.append(Table("How the run was started", rows))
        found.append(Code(text_of(self.run.recipe)))
        found.append(Text(f"The recipe{self._repeats()}."))
        return found

    def _repeats(self) -> str:
        """What trains again by the recipe, where its kind is known and has a command for that."""
        from mapet.api.resume import VERBS, kind_of

        with suppress(MapetError):
            if (kind := kind_of(self.run)) != "VQ-KD training":
                return f", as recipe.yaml in the folder: mapet {VERBS[kind]} --recipe FILE trains with it again"
        return ""

    def learned(self) -> list[Part]:
        """Evaluations, and what was measured on the way."""
        parts = self.scores()
        if rows := self.probes:
            caption = "Measured on the way (--probe-every), on images that are not trained on where labels exist."
            if count := rows[-1].get("images"):
                share = f"{rows[-1]['guess']:.1%} of the {count:,.0f} test images drawn"
                caption += f" Dashed: always the most frequent training class, {share}."
            parts.append(drawn(charts.probes(rows), "k-NN accuracy and effective rank over epochs", caption))
        return parts

    def scores(self) -> list[Part]:
        """The evaluations of the run."""
        rows = []
        for entry in self.run.scores:
            for name, score in entry.items():
                if not isinstance(score, dict) or not {"value", "low", "high", "count"} <= score.keys():
                    continue
                interval = f"{100 * score['low']:.1f} – {100 * score['high']:.1f}"
                before = "before training:" if entry.get("step") == 0 else ""
                note = " ".join(filter(None, [before, str(entry.get("protocol", "")), score.get("note", "")]))
                rows.append((name, f"{100 * score['value']:.1f}", interval, f"{score['count']:,}", note))
        if not rows:
            return []
        header = ("score", "%", "95 % interval", "of", "protocol")
        return [Table("Scores", rows, header, words=1)]
