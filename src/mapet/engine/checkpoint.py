"""Checkpoints on disk: one safetensors file, or one a process and an index; both are read in the same way.

A folder holds ``index.json``, which names the files, and in each of them some rows of every tensor: in the order of the
files, one below the other, they are the whole. Files are never written twice and the index comes last, so that a kill
at any moment leaves the checkpoint before.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mapet.utils.errors import MapetError
from mapet.utils.io import replace_file

FORMAT = "mapet-checkpoint-1"
INDEX = "index.json"


class Checkpoint:
    """Step, names and shapes of a checkpoint, whose tensors are read as they are asked for.

    Attributes:
        path: a safetensors file, or a folder with an index.
        step: completed steps.
        shapes: of every tensor as a whole, by name.

    Raises:
        MapetError: not to be read, not complete, or no checkpoint of a run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pieces: dict[str, list[tuple[Any, list[int]]]] = {}
        try:
            step, files = _index(path) if path.is_dir() else (None, [path])
            for file in files:
                step = self._open(file, step)
            self.step = int(step or 0)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise MapetError(
                f"{path} is not a readable checkpoint ({error}): restore it, or begin the run anew."
            ) from error
        self.shapes = {name: _whole([shape for _, shape in pieces]) for name, pieces in self._pieces.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows ``start`` to ``stop`` of a tensor, on the CPU: all without numbers. Only they are read from disk."""
        pieces, at = self._pieces[name], 0
        found = [pieces[0][0].get_slice(name)[:0]] if self.shapes[name] else [pieces[0][0].get_tensor(name)]
        for file, shape in pieces if self.shapes[name] else []:
            first, last = max(start - at, 0), min((self.shapes[name][0] if stop is None else stop) - at, shape[0])
            found += [file.get_slice(name)[first:last]] if first < last else []
            at += shape[0]
        return torch.cat(found) if len(found) > 1 else found[0]

    def whole(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {name: self.read(name) for name in self.shapes}

    def _open(self, path: Path, step: int | None) -> int:
        """Take the names of one file in; its step, which must be ``step`` where that is known."""
        file: Any = safe_open(path, "pt")
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise MapetError(f"{path} is a safetensors file but no checkpoint of a run: give a run's folder.")
        if step not in (None, int(metadata["step"])):
            raise ValueError(f"{path.name} is of step {metadata['step']}, and the index of step {step}")
        for name in file.keys():  # noqa: SIM118
            self._pieces.setdefault(name, []).append((file, file.get_slice(name).get_shape()))
        return int(metadata["step"])


def exists(path: Path) -> bool:
    """Whether there is a checkpoint, file or folder; a folder without an index is none."""
    return path.is_file() or (path / INDEX).is_file()


def write_file(path: Path, step: int, tensors: Mapping[str, Tensor], copies: tuple[Path, ...] = ()) -> None:
    """One safetensors file, whole or not at all; each of the ``copies`` is there before it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, metadata = path.with_suffix(".partial"), {"format": FORMAT, "step": str(step)}
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, partial, metadata)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    for copy in copies:
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(partial, copy.with_suffix(".partial"))
        os.replace(copy.with_suffix(".partial"), copy)
    os.replace(partial, path)


def write_parts(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    *,
    rank: int,
    count: int,
    barrier: Callable[[], None],
    copies: tuple[Path, ...] = (),
) -> None:
    """One file a process in a folder that all of them see; called by all, complete once it returns to the first.

    Args:
        folder: of the checkpoint; an earlier one in it is replaced.
        step: completed steps.
        tensors: the rows of this process; empty ones are left out.
        rank: of this process, from 0.
        count: processes.
        barrier: waits for all of them.
        copies: other folders that are to hold the same, before ``folder`` does.
    """
    names = [f"{step:08d}-{number:05d}-of-{count:05d}.safetensors" for number in range(count)]
    filled = {name: tensor for name, tensor in tensors.items() if tensor.numel()}
    write_file(folder / names[rank], step, filled, tuple(copy / names[rank] for copy in copies))
    barrier()
    if rank:
        return
    for place in (*copies, folder):
        replace_file(place / INDEX, json.dumps({"format": FORMAT, "step": step, "files": names}, indent=1) + "\n")
        for old in {path.name for path in place.iterdir()} - {INDEX, *names}:
            (place / old).unlink()


def remove(path: Path) -> None:
    """Delete a checkpoint, if it is there: of a folder first the index, so that no half of it is taken for one."""
    (path / INDEX if path.is_dir() else path).unlink(missing_ok=True)
    if path.is_dir():
        shutil.rmtree(path)


def _index(folder: Path) -> tuple[int | None, list[Path]]:
    content = json.loads((folder / INDEX).read_text())
    if content["format"] != FORMAT:
        raise ValueError(f"the format {content['format']} is not known")
    return content["step"], [folder / name for name in content["files"]]


def _whole(shapes: list[list[int]]) -> tuple[int, ...]:
    return (sum(shape[0] for shape in shapes), *shapes[0][1:]) if shapes[0] else ()
