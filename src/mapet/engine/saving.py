"""Writes the checkpoints of a run, two generations of them, and deletes what a kill leaves."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from mapet.engine.checkpoint import BEFORE, INDEX, about_run, clean, exists, remove, write_file, write_parts
from mapet.engine.generations import LAST, PREVIOUS, SHARDED, fault, rotate, trust
from mapet.engine.origin import METRICS, metrics_seal, settings
from mapet.utils.io import sync


def save(run: Path, step: int, tensors: Mapping[str, Tensor], *, keep: bool) -> None:
    """As ``Run.save``, into the run's folder."""
    folder = run / "checkpoints"
    last, copies = folder / LAST, (folder / f"step-{step:08d}.safetensors",) if keep else ()
    _sync_metrics(run)
    # The copy comes first: a killed run resumes from ``last`` and would not write the copy of this step again.
    written = write_file(last, step, tensors, copies, about_run(settings(run), metrics_seal(run)))
    rotated = rotate(folder)
    os.replace(written, last)
    sync(folder)
    trust(last)
    if rotated:
        remove(folder / SHARDED)


def save_parts(
    run: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    *,
    rank: int,
    count: int,
    barrier: Callable[[], None],
    keep: bool,
) -> None:
    """As ``Run.save_parts``, into the run's folder."""
    folder = run / "checkpoints"
    last, copies = folder / SHARDED, (folder / f"step-{step:08d}",) if keep else ()
    if rank == 0:
        _sync_metrics(run)
    valid = rank == 0 and exists(last) and not fault(last)
    write_parts(
        last,
        step,
        tensors,
        rank=rank,
        count=count,
        barrier=barrier,
        copies=copies,
        about=about_run(settings(run), "" if rank else metrics_seal(run)),
        keep_earlier=valid,
    )
    if rank == 0:
        trust(last)
        for name in (LAST, PREVIOUS) if valid else ():
            remove(folder / name)


def clean_up(checkpoints: Path) -> None:
    """Delete partial files of checkpoints."""
    for folder in (checkpoints, *checkpoints.glob("*/")):
        clean(folder)
        for name in (INDEX, BEFORE):
            (folder / f"{name}.part").unlink(missing_ok=True)


def _sync_metrics(run: Path) -> None:
    if (run / METRICS).is_file():
        sync(run / METRICS)
