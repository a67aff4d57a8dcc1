"""Weights that others published: read without running anything of theirs, and filled into networks of ours."""

import argparse
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mapet.utils.errors import MapetError

WANTED = "a .safetensors file or a PyTorch file that holds a state dict and nothing else"
SAVE = "safetensors.torch.save_file(module.state_dict(), FILE)"
WRAPPED = r"^((module|_orig_mod)\.)+"  # what DistributedDataParallel and torch.compile put before each name


class Unread:
    """Stands for a class that a checkpoint only names."""


HARMLESS: list[Any] = [
    argparse.Namespace,  # a trainer's arguments
    (Unread, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),  # a key of Lightning's older checkpoints
]


def read_weights(path: Path, *, ema: bool = False) -> dict[str, Tensor]:
    """The state dict in a file, or the one that a checkpoint keeps under ``state_dict`` or ``model``, on the CPU.

    PyTorch files are read by the weights-only loader, which makes tensors and plain containers and calls no code.

    Args:
        path: a ``.safetensors`` file, or a PyTorch file under any other name.
        ema: prefer averaged weights (``state_dict_ema``, ``model_ema``) where a checkpoint has them.

    Raises:
        MapetError: no such file, not a file of weights, or a pickle of objects.
    """
    if not path.is_file():
        raise MapetError(f"There is no weights file {path}: give {WANTED}.")
    try:
        content = _content(path)
    except Exception as error:
        raise MapetError(f"{path} cannot be read as weights: it is {_kind(path, error)}") from None
    keys = ("state_dict_ema", "model_ema") * ema + ("state_dict", "model")
    nested = content if isinstance(content, Mapping) else {}
    state = next((nested[key] for key in keys if isinstance(nested.get(key), Mapping)), nested)
    if not state or not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()):
        raise MapetError(f"{path} holds something other than a state dict: {WANTED} is wanted.")
    return {re.sub(WRAPPED, "", name): tensor for name, tensor in state.items()}


def named(weights: Mapping[str, Tensor], name: str, what: str) -> Tensor:
    """The tensor ``name``; ``what`` says in the error whose weights these should be.

    Raises:
        MapetError: it is missing.
    """
    if name not in weights:
        some = ", ".join(list(weights)[:3]) or "nothing"
        raise MapetError(f'These are not the weights of {what}: they lack "{name}" (they hold {some} …).')
    return weights[name]


def extent(weights: Mapping[str, Tensor], name: str, what: str, axis: int = 0) -> int:
    """The length of one axis of the tensor ``name`` of ``what``.

    Raises:
        MapetError: it is missing, or has fewer axes.
    """
    shape = named(weights, name, what).shape
    if axis >= len(shape):
        raise MapetError(f'These are not the weights of {what}: "{name}" is {tuple(shape)}.')
    return shape[axis]


def count(weights: Mapping[str, Tensor], prefix: str) -> int:
    """How many different parts follow ``prefix`` in the names, up to their next dot."""
    return len({name[len(prefix) :].partition(".")[0] for name in weights if name.startswith(prefix)})


def fill(network: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Copy ``weights`` into ``network``, where each must have its place, and each place its tensor.

    Raises:
        MapetError: the first tensor that is missing, of another shape, not finite, or too much.
    """
    own = network.state_dict()
    for name, place in own.items():
        found = tuple(named(weights, name, what).shape)
        if found != tuple(place.shape):
            raise MapetError(f'These weights do not fit {what}: "{name}" is {found}, not {tuple(place.shape)}.')
        if not weights[name].isfinite().all():
            raise MapetError(f'The weights of {what} are broken: "{name}" holds NaN or infinity. Bring others.')
    for name in weights:
        if name not in own:
            raise MapetError(f'These are not the weights of {what}: it has no place for "{name}".')
    network.load_state_dict(dict(weights))


def _content(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(HARMLESS):
        return torch.load(path, map_location="cpu", weights_only=True)


def _kind(path: Path, error: Exception) -> str:
    """What a file is that is no state dict, and what to do about it."""
    if found := re.search(r"\bGLOBAL (\S+)", str(error)):
        return (
            f"a pickle of more than tensors ({found[1]}), and loading that could run any code. Where you trust it, "
            f"convert it: module = torch.load({path.name!r}, weights_only=False), with the package that made it "
            f"installed; then {SAVE}."
        )
    with path.open("rb") as file:
        start = file.read(4)
    if not start:
        kind = "empty"
    elif start.startswith((b"PK", b"\x80")):
        kind = "a damaged file, a TorchScript archive, or a pickle of more than tensors"
    else:
        kind = f"a damaged file, or one of another kind (it begins with {start.decode('latin-1')!a})"
    return f"{kind}, and {WANTED} is wanted."
