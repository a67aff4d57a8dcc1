"""Checkpoints on disk: one safetensors file, or a folder with one file per process and an index.

In a folder, ``index.json`` names the files. Each file holds some rows of every tensor; concatenated in the order of the
files they are the full tensor. Files are never overwritten and the index is written last, so a kill at any moment
leaves the previous checkpoint.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mapet.utils.errors import MapetError, reason
from mapet.utils.fingerprint import KEY, fingerprint
from mapet.utils.io import FULL, load_json, replace_file, sync
from mapet.utils.owned import discard

FORMAT, UNVERIFIED = "mapet-checkpoint-2", "mapet-checkpoint-1"  # the second, of version 0.1, has no fingerprint
INDEX, BEFORE = "index.json", "previous.json"  # the second names the files of the checkpoint before
ABOUT = "run"  # in the metadata
PART = r"\d+-\d+-of-\d+\.(safetensors|partial)"  # files of a folder


class Checkpoint:
    """An open checkpoint; tensors are read on demand.

    Attributes:
        path: a safetensors file, or a folder with an index.
        step: completed steps.
        shapes: full shape of every tensor, by name.
        settings: of its run, by ``FILE: NAME``; empty in version 0.1.
        metrics: size and hash of its run's metrics; empty in version 0.1.

    Args:
        path: as above; or in such a folder ``previous.json``, the index of the checkpoint before.

    Raises:
        MapetError: unreadable, incomplete, or not a checkpoint of a run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pieces: dict[str, list[tuple[Any, list[int]]]] = {}
        self._files: list[tuple[Any, str, str | None]] = []
        try:
            step, files = _index(path) if path.is_dir() or path.suffix == ".json" else (None, [path])
            for file in files:
                step = self._open(file, step)
            self.step = int(step or 0)
            about: list[dict[str, Any]] = [json.loads(text) for _, text, _ in self._files if text]
            self.settings: dict[str, Any] = next((one["settings"] for one in about), {})
            self.metrics: str = next((one["metrics"] for one in about if one["metrics"]), "")
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise _unreadable(path, error) from error
        self.shapes = {name: _full_shape([shape for _, shape in pieces]) for name, pieces in self._pieces.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows ``start`` to ``stop`` (default: all) of a tensor, on the CPU. Only these rows are read from disk."""
        pieces, offset = self._pieces[name], 0
        found = [pieces[0][0].get_slice(name)[:0]] if self.shapes[name] else [pieces[0][0].get_tensor(name)]
        for file, shape in pieces if self.shapes[name] else []:
            end = self.shapes[name][0] if stop is None else stop
            first, last = max(start - offset, 0), min(end - offset, shape[0])
            found += [file.get_slice(name)[first:last]] if first < last else []
            offset += shape[0]
        return torch.cat(found) if len(found) > 1 else found[0]

    def read_all(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {name: self.read(name) for name in self.shapes}

    def verify(self) -> bool:
        """Compare the content with the fingerprints. Returns whether it has any: those of version 0.1 have none.

        Raises:
            MapetError: the content was changed.
        """
        for file, about, expected in self._files:
            try:
                found = expected and fingerprint(file.keys(), file.get_tensor, *_sealed(self.step, about))
            except (SafetensorError, OSError, ValueError, RuntimeError) as error:
                raise _unreadable(self.path, error) from error
            if found != expected:
                raise _unreadable(self.path, "its content does not match its fingerprint")
        return all(expected for *_, expected in self._files)

    def read_finite(self, name: str) -> Tensor:
        """A whole tensor of weights.

        Raises:
            MapetError: it has values that are NaN or infinite.
        """
        tensor = self.read(name)
        if not torch.isfinite(tensor).all():
            raise MapetError(
                f"{self.path} is damaged: {name} has values that are NaN or infinite. Restore it, or train again."
            )
        return tensor

    def _open(self, path: Path, step: int | None) -> int:
        """Add the tensors of one file. Returns its step, which must equal ``step`` unless that is None."""
        file: Any = safe_open(path, "pt")
        metadata = file.metadata() or {}
        if metadata.get("format") not in (FORMAT, UNVERIFIED):
            raise MapetError(f"{path} is a safetensors file but not a checkpoint of a run: give the run's folder.")
        if step not in (None, int(metadata["step"])):
            raise ValueError(f"{path.name} has step {metadata['step']}, the index has step {step}")
        self._files.append((file, metadata.get(ABOUT, ""), metadata[KEY] if metadata["format"] == FORMAT else None))
        for name in file.keys():  # noqa: SIM118
            self._pieces.setdefault(name, []).append((file, file.get_slice(name).get_shape()))
        return int(metadata["step"])


def _sealed(step: int, about: str) -> tuple[object, ...]:
    """What the fingerprint covers beside the tensors."""
    return (step, about) if about else (step,)


def about_run(settings: Mapping[str, Any], metrics: str = "") -> str:
    """What a checkpoint holds of its run, for ``write_file``; empty without settings."""
    return json.dumps({"settings": settings, "metrics": metrics}) if settings else ""


def exists(path: Path) -> bool:
    """Whether ``path`` is a checkpoint file, or a folder with an index."""
    return path.is_file() or (path / INDEX).is_file()


def write_file(
    path: Path, step: int, tensors: Mapping[str, Tensor], copies: tuple[Path, ...] = (), about: str = ""
) -> Path:
    """Write one safetensors file next to ``path``, after its ``copies``, and flush it to the disk.

    Returns:
        The complete file, which is to be renamed to ``path``.

    Raises:
        MapetError: it cannot be written; partial files are deleted.
    """
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(partial, step, tensors, about)
        for copy in copies:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(partial, copy.with_suffix(".partial"))
            sync(copy.with_suffix(".partial"))
            os.replace(copy.with_suffix(".partial"), copy)
            sync(copy.parent)
    except (OSError, SafetensorError) as error:
        for folder in {path.parent, *(copy.parent for copy in copies)}:
            clean(folder)
        full = (
            any(words in str(error) for words in ("os error 28", "No space left"))
            or getattr(error, "errno", None) in FULL
        )
        why = "the disk is full" if full else reason(error)
        raise MapetError(
            f"The checkpoint {path} could not be written: {why}. Free some space, then continue with --resume; "
            "the checkpoint before is kept."
        ) from error
    return partial


def clean(folder: Path) -> None:
    """Delete what a kill or a full disk leaves of checkpoints that were being written."""
    for path in (*folder.glob("*.partial"), *folder.glob(".tmp??????")):  # the second are those of safetensors
        if path.is_file() and not path.is_symlink():
            path.unlink()


def _write(path: Path, step: int, tensors: Mapping[str, Tensor], about: str) -> None:
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    seal = fingerprint(content, content.__getitem__, *_sealed(step, about))
    metadata = {"format": FORMAT, "step": str(step), KEY: seal, **({ABOUT: about} if about else {})}
    path.write_bytes(b"")
    mode = path.stat().st_mode  # that of other files, where safetensors makes its own private
    save_file(content, path, metadata)
    path.chmod(mode & 0o777)
    sync(path)


def _unreadable(path: Path, why: Exception | str) -> MapetError:
    why = why if isinstance(why, str) else reason(why)
    return MapetError(f"{path} is not a readable checkpoint ({why}): restore it, or start the run again.")


def write_parts(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    *,
    rank: int,
    count: int,
    barrier: Callable[[], None],
    copies: tuple[Path, ...] = (),
    about: str = "",
    keep_earlier: bool = True,
) -> None:
    """Write one file per process into a shared folder. All processes call it; complete when it returns on rank 0.

    Args:
        folder: the checkpoint; an earlier one in it becomes ``previous.json``.
        step: completed steps.
        tensors: rows of this process; empty tensors are skipped.
        rank: this process, from 0.
        count: number of processes.
        barrier: waits for all processes.
        copies: folders that get the same content before ``folder``.
        about: of ``about_run``.
        keep_earlier: on rank 0, whether the earlier one is valid; a damaged one goes, and the one before it stays.
    """
    names = [f"{step:08d}-{number:05d}-of-{count:05d}.safetensors" for number in range(count)]
    filled = {name: tensor for name, tensor in tensors.items() if tensor.numel()}
    own = folder / names[rank]
    os.replace(write_file(own, step, filled, tuple(copy / names[rank] for copy in copies), about), own)
    sync(folder)
    barrier()
    if rank:
        return
    if keep_earlier and (folder / INDEX).is_file():
        replace_file(folder / BEFORE, (folder / INDEX).read_bytes())
    for target in (*copies, folder):
        replace_file(target / INDEX, json.dumps({"format": FORMAT, "step": step, "files": names}, indent=1) + "\n")
        before = load_json(target / BEFORE)
        kept = {INDEX, BEFORE, *names, *(before["files"] if isinstance(before, dict) else ())}
        for old in target.iterdir():
            if old.name not in kept and re.fullmatch(PART, old.name):
                old.unlink()


def remove(path: Path) -> None:
    """Delete a checkpoint if it exists; a folder's indices first, so that a partial folder is not taken for one."""
    for file in (path / BEFORE, path / INDEX) if path.is_dir() else (path,):
        file.unlink(missing_ok=True)
    discard(path, {PART: None, re.escape(INDEX) + ".part": None})


def _index(path: Path) -> tuple[int | None, list[Path]]:
    """Step and files that a folder's index, or another index in it, names."""
    path = path / INDEX if path.is_dir() else path
    content = json.loads(path.read_text())
    if content["format"] not in (FORMAT, UNVERIFIED):
        raise ValueError(f"unknown format {content['format']}")
    if not content["files"] or not all(re.fullmatch(PART, name) for name in content["files"]):
        raise ValueError("it names no files")
    return content["step"], [path.parent / name for name in content["files"]]


def _full_shape(shapes: list[list[int]]) -> tuple[int, ...]:
    return (sum(shape[0] for shape in shapes), *shapes[0][1:]) if shapes[0] else ()
