"""The files of an exported folder: written whole or not at all, and verified.

The metadata of the weights has a fingerprint of them and of the fields of ``config.json`` that decide what they mean.
A new export is written to ``.NAME.part/NAME`` beside the folder, and an earlier one is kept as ``.NAME.old`` until the
new one is in its position. The next export deletes what a kill leaves of either.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mapet.utils.errors import MapetError, reason
from mapet.utils.fingerprint import KEY, file_hash, fingerprint
from mapet.utils.io import require_text, sync, writing
from mapet.utils.lock import LOCK, Lock
from mapet.utils.owned import AN_EXPORT, EXPORT, discard, find_foreign, is_export, is_unfinished_export

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
PROGRAMS = "programs"  # in the config: the hash of each ONNX or torch.export file
SEALED = ("architecture", "num_classes", "label_names", "global_pool", "model_args", "pretrained_cfg")  # of the config


def weights(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> bytes:
    """The content of the weights' file."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    seal = fingerprint(tensors, tensors.__getitem__, _sealed(config))
    return save(tensors, metadata={"format": "pt", **AN_EXPORT, KEY: seal})


def write(path: Path, content: bytes) -> None:
    """Write a file and flush it to the disk."""
    with writing(path):
        path.write_bytes(content)
        sync(path)


def read_config(folder: Path) -> dict[str, Any]:
    """The content of ``config.json``.

    Raises:
        MapetError: unreadable, or not a JSON object.
    """
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise MapetError(f"{folder / CONFIG} cannot be read ({reason(error)}): restore it, or export again.") from error
    if not isinstance(config, dict):
        raise MapetError(f"{folder / CONFIG} is not a JSON object: restore it, or export again.")
    return config


def verify(folder: Path) -> bool:
    """Verify an export. Returns whether it has a fingerprint, which those of version 0.1 lack.

    Raises:
        MapetError: a file is unreadable or was changed, or weights are NaN or infinite.
    """
    config, path = read_config(folder), folder / WEIGHTS
    try:
        file: Any = safe_open(path, "pt")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        expected = (file.metadata() or {}).get(KEY)
        found = fingerprint(tensors, tensors.__getitem__, _sealed(config)) if expected else None
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise MapetError(f"{path} cannot be read ({reason(error)}): restore it, or export again.") from error
    if found != expected:
        raise MapetError(
            f"{folder} was changed since it was exported: {WEIGHTS} and {CONFIG} do not match the fingerprint. "
            "Restore them, or export again."
        )
    if bad := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise MapetError(f"{path} is damaged: {bad[0]} has values that are NaN or infinite. Export again.")
    return expected is not None


def verify_programs(folder: Path) -> None:
    """Verify the ONNX and torch.export files of an export.

    Raises:
        MapetError: one is unreadable, or was changed.
    """
    for name, expected in read_config(folder).get(PROGRAMS, {}).items():
        try:
            found = file_hash(folder / name)
        except OSError as error:
            raise MapetError(
                f"{folder / name} cannot be read ({reason(error)}): restore it, or export again."
            ) from error
        if found != expected:
            raise MapetError(f"{folder / name} was changed since it was exported: restore it, or export again.")


@contextmanager
def replacing(folder: Path, overwrite: bool) -> Iterator[Path]:
    """An empty folder that becomes ``folder`` when the block ends, in which the caller writes an export.

    Args:
        folder: absolute.
        overwrite: whether an earlier export is replaced.

    Raises:
        MapetError: the folder holds something else or has a name that is not UTF-8, or another process exports to it.
    """
    require_text(folder)
    part = folder.with_name(f".{folder.name}.part")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if part.is_dir() and (other := find_foreign(part, {re.escape(folder.name): EXPORT, re.escape(LOCK): None})):
        raise MapetError(f"{other} is in the way of the export: move it away, or name another folder.")
    lock = Lock(part, "exporting into")
    try:
        _check_writable(folder, overwrite)
        discard(part / folder.name, EXPORT)  # of a killed export
        (part / folder.name).mkdir()
        yield part / folder.name
        sync(part / folder.name)
        _swap(part / folder.name, folder)
    finally:
        discard(part / folder.name, EXPORT)
        lock.release()
        with suppress(OSError):  # a killed export had made it
            part.rmdir()


def _check_writable(folder: Path, overwrite: bool) -> None:
    """Repair an interrupted swap, then refuse a folder that holds anything but an export to overwrite."""
    if folder.exists() and not folder.is_dir():
        raise MapetError(f"{folder} is a file; name another folder.")
    full, old = folder.exists() and any(folder.iterdir()), _old(folder)
    if is_export(old) and not full:
        old.replace(folder)
        full = True
    elif is_unfinished_export(old) and is_export(folder):
        discard(old, EXPORT)
    if full and (other := find_foreign(folder, EXPORT)):
        raise MapetError(f'{folder} holds "{other.name}", which no export wrote; name another folder.')
    if full and not is_export(folder):
        raise MapetError(
            f"{folder} holds a model without the mark of a mapet export, so it is not overwritten; "
            "name another folder, or remove this one yourself."
        )
    if full and not overwrite:
        raise MapetError(f"{folder} already holds an export; name another folder, or replace it with --overwrite.")


def _swap(new: Path, target: Path) -> None:
    """Rename ``new`` to ``target``; the previous ``target`` is deleted afterwards, or restored on failure."""
    old = _old(target)
    try:
        if target.exists():
            target.rename(old)
        new.rename(target)
        sync(target.parent)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    discard(old, EXPORT)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _sealed(config: Mapping[str, Any]) -> str:
    known = {name: config.get(name) for name in SEALED}
    return json.dumps(known | {name: config[name] for name in (PROGRAMS,) if name in config}, sort_keys=True)
