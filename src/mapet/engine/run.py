"""The run folder: all that is needed to judge, repeat and continue a run, and nothing from the environment.

recipe.yaml        every setting, resolved; give it back to train the same again
provenance.json    command, versions, machine, time
metrics.csv        one row a step; a resumed run's is equal, byte by byte, to an uninterrupted one's
tensorboard/       the same for TensorBoard
log.txt            what was said on the screen, and more, with the time
seconds.json       how long the steps up to the last checkpoint took
checkpoints/       last.safetensors, and step-*.safetensors as often as asked; of sharded weights, folders of that name
classifier.json    of a fine-tuning: the shape of the classifier, and its classes
unreadable-images.txt   images that could not be read, if there were any
.mapet             that the folder is a run's, so that it may be overwritten
"""

import csv
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mapet.engine.checkpoint import Checkpoint, exists, remove, write_file, write_parts
from mapet.utils.errors import MapetError
from mapet.utils.io import replace_file
from mapet.utils.lock import LOCK, Lock
from mapet.utils.log import log
from mapet.utils.owned import (
    A_RUN,
    ASIDE,
    MARK,
    RUN,
    RUNS,
    drop,
    is_aside,
    is_marked,
    mark,
    put_aside,
    put_back,
    require_ours,
    tree_of,
)
from mapet.utils.versions import versions

VERSIONS = ("mapet", "torch", "torchvision", "timm", "lightning-fabric", "numpy", "pillow", "safetensors")


class Run:
    """One run's folder. Only the first process writes, but for bad images; ``Run(folder)`` alone touches nothing."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.recipe = self.folder / "recipe.yaml"
        self.classifier = self.folder / "classifier.json"
        self.metrics = self.folder / "metrics.csv"
        self.log = self.folder / "log.txt"
        self.checkpoints = self.folder / "checkpoints"
        self.unreadable_images = self.folder / "unreadable-images.txt"

    @classmethod
    def create(cls, folder: str | Path, *, overwrite: bool = False) -> "Run":
        """A new run in an empty or absent folder.

        An earlier one is put aside with ``overwrite``, and deleted with the first row of metrics. What another call
        had put aside and did not delete has its place again first.

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
                    f"{run.folder} is not empty. Go on with it by --resume {run.folder}, "
                    "or give another --out, or start afresh with --overwrite."
                )
            require_ours(run.folder, RUNS)
            put_aside(run.folder, tree_of(run.folder, RUNS))
        mark(run.folder, A_RUN)
        return run

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """An existing run.

        Raises:
            MapetError: the folder holds no run.
        """
        run = cls(folder)
        if not run.recipe.is_file():
            aside = f"; an earlier one was put aside into {run.folder / ASIDE}" if is_aside(run.folder) else ""
            raise MapetError(f"{run.folder} holds no run: there is no recipe.yaml in it{aside}.")
        return run

    def alone(self) -> Lock:
        """Keep other processes from training in this folder.

        Raises:
            MapetError: one does.
        """
        return Lock(self.folder, "training in")

    def _content(self) -> Iterator[Path]:
        """All but what a kill leaves before a run has a recipe."""
        begun = {LOCK, f"{MARK}.part", f"{self.recipe.name}.part", *([MARK] if is_marked(self.folder, A_RUN) else [])}
        return (path for path in self.folder.iterdir() if path.name not in begun)

    def write_provenance(self) -> None:
        """Which command made this with which versions on which machine, in ``provenance.json``; never overwritten."""
        path = self.folder / "provenance.json"
        earlier = json.loads(path.read_text()) if path.is_file() else []
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
        """Append one line, with the time, to ``log.txt``."""
        with self.log.open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Append what is logged to ``log.txt``, with the time; on rank 0."""
        handler, level, propagate = _LogFile(self), log.level, log.propagate
        if not log.isEnabledFor(logging.INFO):  # nobody else listens
            log.setLevel(logging.INFO)
            log.propagate = False
        log.addHandler(handler)
        try:
            yield
        finally:
            log.removeHandler(handler)
            log.setLevel(level)
            log.propagate = propagate

    @property
    def last(self) -> Path:
        """The last checkpoint: ``last.safetensors``, or the folder ``last``; the former where there is none yet."""
        one, parts = self.checkpoints / "last.safetensors", self.checkpoints / "last"
        found = [path for path in (one, parts) if exists(path)]
        return max(found, key=lambda path: Checkpoint(path).step) if len(found) > 1 else (found or [one])[0]

    def save(self, step: int, tensors: Mapping[str, Tensor], *, keep: bool = False) -> None:
        """Write ``last.safetensors`` atomically, and ``step-….safetensors`` beside it with ``keep``."""
        kept = self.checkpoints / f"step-{step:08d}.safetensors"
        # the copy before the last one, from which a killed run goes on: it would not come by here again
        write_file(self.checkpoints / "last.safetensors", step, tensors, (kept,) if keep else ())
        remove(self.checkpoints / "last")

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
        """The same as folders, into which each process writes its own rows; arguments as ``write_parts``."""
        kept = self.checkpoints / f"step-{step:08d}"
        last, copies = self.checkpoints / "last", (kept,) if keep else ()
        write_parts(last, step, tensors, rank=rank, count=count, barrier=barrier, copies=copies)
        if rank == 0:
            remove(self.checkpoints / "last.safetensors")

    @property
    def scores(self) -> list[dict[str, Any]]:
        """The entries of ``scores.json``, one for each evaluation; none where there is no such file."""
        path = self.folder / "scores.json"
        found: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
        return found

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The last checkpoint, its tensors not yet read; None where there is none."""
        return Checkpoint(self.last) if exists(self.last) else None

    @property
    def completed(self) -> int:
        """Completed steps of the last checkpoint, whose tensors are not read; 0 where there is none yet."""
        checkpoint = self.checkpoint
        return checkpoint.step if checkpoint else 0

    def note_seconds(self, step: int, seconds: float) -> None:
        """Write down how long the steps up to ``step`` took."""
        replace_file(self.folder / "seconds.json", json.dumps({"step": step, "seconds": seconds}) + "\n")

    def seconds(self, step: int) -> float:
        """How long the steps up to ``step`` took, by what was noted last; 0 where nothing was."""
        path = self.folder / "seconds.json"
        noted = json.loads(path.read_text()) if path.is_file() else {"step": 1, "seconds": 0.0}
        return float(noted["seconds"] * step / noted["step"])

    def append_metrics(self, rows: Sequence[Mapping[str, float]]) -> None:
        """One line a row; the header comes from the first, and with it an earlier run that was put aside is deleted."""
        fresh = not self.metrics.is_file() or not self.metrics.stat().st_size
        with self.metrics.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            if fresh:
                writer.writeheader()
            writer.writerows(rows)
        if fresh:
            drop(self.folder)

    def trim_metrics(self, step: int) -> None:
        """Forget the rows after ``step``, and a line that was cut off in the middle."""
        if not self.metrics.is_file():
            return
        lines = self.metrics.read_text().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        kept = [line for line in whole[1:] if int(line.split(",", 1)[0]) <= step]
        replace_file(self.metrics, "".join([*whole[:1], *kept]))


class _LogFile(logging.Handler):
    """Writes records into a run's log, which need not exist yet."""

    def __init__(self, run: Run) -> None:
        super().__init__(logging.INFO)
        self.run = run

    def emit(self, record: logging.LogRecord) -> None:
        """Append one line."""
        self.run.write_log(record.getMessage())


def load_checkpoint(path: Path) -> tuple[int, dict[str, Tensor]]:
    """Completed steps and tensors of a checkpoint, file or folder.

    Raises:
        MapetError: not to be read, or not a checkpoint of a run.
    """
    checkpoint = Checkpoint(path)
    return checkpoint.step, checkpoint.whole()


def parts(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name begins with ``prefix/``, without it."""
    start = f"{prefix}/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def prefixed(prefix: str, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The inverse of ``parts``."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors}
