"""The run folder: what is needed to judge, repeat and resume a run. It never holds environment variables.

recipe.yaml             all settings, resolved; training with this file repeats the run
provenance.json         per command: command line, time, versions, machine
metrics.csv             one row per step; byte-identical for resumed and uninterrupted runs
tensorboard/            the same metrics for TensorBoard
log.txt                 log messages with the time
seconds.json            training time up to the last checkpoint
checkpoints/            last.safetensors, the one before as previous.safetensors, and step-*.safetensors with
                        --save-every; folders if the weights are sharded
runtime.json            settings that a resume takes over: --max-bad-fraction, --micro-batch-size
classifier.json         fine-tuning only: shape of the classifier, and class names
segmenter.json          segmentation only: shape of the model, and class names
unreadable-images.txt   images that could not be read, with the reason; absent if there are none
.mapet                  marks the folder as a run, which --overwrite may replace
"""

import csv
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mapet.engine import saving
from mapet.engine.checkpoint import Checkpoint, exists
from mapet.engine.generations import newest
from mapet.engine.metrics_file import trim
from mapet.engine.origin import require_same
from mapet.utils.errors import MapetError
from mapet.utils.io import load_json, replace_file, require_text, writing
from mapet.utils.lock import LOCK, Lock
from mapet.utils.log import FABRIC, log
from mapet.utils.owned import (
    A_RUN,
    ASIDE,
    MARK,
    RUN,
    RUNS,
    drop,
    is_aside,
    is_listed,
    is_marked,
    mark,
    put_aside,
    put_back,
    require_ours,
    tree_of,
)
from mapet.utils.process_group import first_process
from mapet.utils.versions import versions

VERSIONS = ("mapet", "torch", "torchvision", "timm", "lightning-fabric", "numpy", "pillow", "safetensors")


class Run:
    """A run folder. Only rank 0 writes, except for unreadable images; ``Run(folder)`` itself touches no file."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.recipe = self.folder / "recipe.yaml"
        self.classifier = self.folder / "classifier.json"
        self.segmenter = self.folder / "segmenter.json"
        self.metrics = self.folder / "metrics.csv"
        self.log = self.folder / "log.txt"
        self.checkpoints = self.folder / "checkpoints"
        self.unreadable_images = self.folder / "unreadable-images.txt"

    @classmethod
    def create(cls, folder: str | Path, *, overwrite: bool = False) -> "Run":
        """A new run in an empty or missing folder.

        With ``overwrite`` an earlier run is moved aside, and deleted when the first row of metrics is written. A run
        that an interrupted call moved aside is moved back first.

        Raises:
            MapetError: the folder is not empty; only files that mapet wrote are ever overwritten.
        """
        run = cls(folder)
        put_back(run.folder, RUN)
        if run.folder.exists() and (not run.folder.is_dir() or any(run._content())):
            if not run.recipe.is_file():
                kind = "is not empty and holds no run" if run.folder.is_dir() else "is a file"
                raise MapetError(f"{run.folder} {kind}: give another --out.")
            if not overwrite:
                raise MapetError(
                    f"{run.folder} is not empty: continue its run with --resume {run.folder}, "
                    "give another --out, or replace it with --overwrite."
                )
            require_ours(run.folder, RUNS)
            put_aside(run.folder, tree_of(run.folder, RUNS))
        mark(run.folder, A_RUN)
        return run

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """An existing run.

        Raises:
            MapetError: the folder is not a run.
        """
        run = cls(folder)
        if not run.recipe.is_file():
            aside = f"; an earlier run was moved aside to {run.folder / ASIDE}" if is_aside(run.folder) else ""
            raise MapetError(f"{run.folder} holds no run: it has no recipe.yaml{aside}.")
        return run

    def lock(self) -> Lock:
        """Keep other processes from training in this folder.

        Raises:
            MapetError: it is a file, has a name that is not UTF-8, or another process holds the lock.
        """
        require_text(self.folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise MapetError(f"{self.folder} is a file: give another --out.")
        return Lock(self.folder, "training in")

    def _content(self) -> Iterator[Path]:
        """All entries except those that a kill leaves before a run has a recipe."""
        initial = {LOCK, f"{MARK}.part", f"{self.recipe.name}.part"}
        if is_marked(self.folder, A_RUN):
            initial.add(MARK)
        return (path for path in self.folder.iterdir() if path.name not in initial)

    def write_provenance(self) -> None:
        """Append command line, time, versions and machine to ``provenance.json``."""
        path = self.folder / "provenance.json"
        found = load_json(path)
        earlier = found if isinstance(found, list) else []
        entry = {
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "python": platform.python_version(),
            "system": platform.platform(),
            "processor": f"{os.cpu_count()} × {platform.machine()}",
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "versions": versions(VERSIONS),
        }
        replace_file(path, json.dumps([*earlier, entry], indent=1) + "\n")

    def write_log(self, line: str) -> None:
        """Append one line with the time to ``log.txt``."""
        with writing(self.log), self.log.open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Copy log messages of rank 0, also those of Lightning Fabric, with the time, to ``log.txt``."""
        handler, level, propagate = _LogFile(self), log.level, log.propagate
        handler.addFilter(lambda record: first_process())
        if not log.isEnabledFor(logging.INFO):  # nobody else listens
            log.setLevel(logging.INFO)
            log.propagate = False
        listened = (log, logging.getLogger(FABRIC))
        for one in listened:
            one.addHandler(handler)
        try:
            yield
        finally:
            for one in listened:
                one.removeHandler(handler)
            log.setLevel(level)
            log.propagate = propagate

    @property
    def last(self) -> Path:
        """The last checkpoint, a file or folder; after damage the newest valid one. It exists if any was written.

        Raises:
            MapetError: all checkpoints are damaged, or it belongs to another run.
        """
        if exists(path := newest(self.checkpoints)):
            require_same(path, self.folder)
        return path

    def save(self, step: int, tensors: Mapping[str, Tensor], *, keep: bool = False) -> None:
        """Write ``last.safetensors`` atomically, and with ``keep`` also ``step-….safetensors``.

        The one before becomes ``previous.safetensors``.
        """
        saving.save(self.folder, step, tensors, keep=keep)

    def save_parts(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        *,
        rank: int,
        count: int,
        barrier: Callable[[], None],
        keep: bool = False,
    ) -> None:
        """As ``save``, but folders into which each process writes its rows; arguments as ``write_parts``."""
        saving.save_parts(self.folder, step, tensors, rank=rank, count=count, barrier=barrier, keep=keep)

    def clean(self) -> None:
        """Delete the partial files that a kill or a full disk left; the caller holds the lock."""
        for path in self.folder.glob("*.part"):
            if path.is_file() and is_listed(path, RUN):
                path.unlink()
        saving.clean_up(self.checkpoints)

    @property
    def scores(self) -> list[dict[str, Any]]:
        """The entries of ``scores.json``, one for each evaluation; none without a valid file."""
        found = load_json(self.folder / "scores.json")
        return found if isinstance(found, list) else []

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The last checkpoint, opened; None if there is none."""
        return Checkpoint(self.last) if exists(self.last) else None

    @property
    def completed(self) -> int:
        """Completed steps of the last checkpoint; 0 if there is none."""
        checkpoint = self.checkpoint
        return checkpoint.step if checkpoint else 0

    def note_seconds(self, step: int, seconds: float, waited: float = 0.0) -> None:
        """Store the training time of the steps up to ``step``, and how much of it the first process waited for data."""
        noted = {"step": step, "seconds": seconds, "waited": waited}
        replace_file(self.folder / "seconds.json", json.dumps(noted) + "\n")

    def seconds(self, step: int, name: str = "seconds") -> float:
        """Training time of the steps up to ``step``, in proportion to the last stored time; 0 if there is none."""
        noted = load_json(self.folder / "seconds.json")
        with suppress(TypeError, KeyError, ValueError, ZeroDivisionError):  # absent or damaged
            return float(noted[name] * step / noted["step"])
        return 0.0

    def append_metrics(self, rows: Sequence[Mapping[str, float | None]]) -> None:
        """Append one line per row to ``metrics.csv``, with empty cells for None.

        The first call writes a header and deletes a run moved aside.
        """
        fresh = not self.metrics.is_file() or not self.metrics.stat().st_size
        with writing(self.metrics), self.metrics.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            if fresh:
                writer.writeheader()
            writer.writerows(rows)
        if fresh:
            drop(self.folder)

    def trim_metrics(self, step: int) -> None:
        """Delete the rows after ``step`` and lines that are not rows; damage in the rest is logged."""
        seal = found.metrics if (found := self.checkpoint) and found.step == step else ""
        if note := trim(self.metrics, step, seal):
            log.info(f"note      {self.metrics} {note}")


class _LogFile(logging.Handler):
    """Writes log records to a run's ``log.txt``."""

    def __init__(self, run: Run) -> None:
        super().__init__(logging.INFO)
        self.run = run

    def emit(self, record: logging.LogRecord) -> None:
        """Append one line."""
        self.run.write_log(record.getMessage())


def load_checkpoint(path: Path) -> tuple[int, dict[str, Tensor]]:
    """Completed steps and tensors of a checkpoint, file or folder.

    Raises:
        MapetError: unreadable, or not a checkpoint of a run.
    """
    checkpoint = Checkpoint(path)
    return checkpoint.step, checkpoint.read_all()


def parts(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix/``, by the rest of their names."""
    start = f"{prefix}/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def prefixed(prefix: str, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The inverse of ``parts``."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors}
