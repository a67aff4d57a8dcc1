"""Load third-party checkpoints without unpickling code."""

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
WRAPPERS = "module|_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module"  # data parallel, compiled, recomputed
WRAPPED = rf"(?<![^.])(?:(?:{WRAPPERS})\.)+"
NESTS = ("state_dict", "model", "teacher", "student", "backbone")  # where trainers keep weights, the first one found


class Placeholder:
    """Replaces a class or function that a checkpoint names outside its weights: nothing of it is built or called."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


NUMPY = [f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")]
PATHS = [f"pathlib.{local}{kind}Path" for local in ("", "_local.") for kind in ("Posix", "Windows", "PurePosix")]
IGNORED = [
    *("numpy.dtype", "numpy.ndarray", *NUMPY),  # a best score, curves
    *PATHS,
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",  # in Lightning's older checkpoints
]
ALLOWED: list[Any] = [argparse.Namespace, *((Placeholder, name) for name in IGNORED)]


def read_weights(path: Path, *, ema: bool = False) -> dict[str, Tensor]:
    """Read a state dict, or the one that a checkpoint holds under one of ``NESTS``, on the CPU.

    PyTorch files are read with ``weights_only=True``, which builds tensors and plain containers and runs no code.
    Scores and curves of NumPy, paths and a trainer's arguments beside the weights are ignored. The names that
    wrappers of modules add (``module.``, ``_orig_mod.`` …) are taken off wherever they stand.

    Args:
        path: a ``.safetensors`` file, or a PyTorch file with any other suffix.
        ema: prefer averaged weights (``state_dict_ema``, ``model_ema``) if a checkpoint has them.

    Raises:
        MapetError: no such file, not a file of weights, or a pickle of objects.
    """
    if not path.is_file():
        raise MapetError(f"There is no weights file {path}: give {WANTED}.")
    try:
        content = _content(path)
    except Exception as error:
        raise MapetError(f"{path} cannot be read as weights: it is {_kind(path, error)}") from None
    keys = ("state_dict_ema", "model_ema") * ema + NESTS
    nested = content if isinstance(content, Mapping) else {}
    state = next((nested[key] for key in keys if isinstance(nested.get(key), Mapping)), nested)
    if not state or not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()):
        found = ", ".join(map(str, list(state)[:3])) or type(content).__name__
        raise MapetError(f"{path} does not hold a state dict (it holds {found}): give {WANTED}.")
    return {re.sub(WRAPPED, "", name): tensor for name, tensor in state.items()}


def named(weights: Mapping[str, Tensor], name: str, what: str) -> Tensor:
    """The tensor ``name``; ``what`` names the expected model in the error.

    Raises:
        MapetError: it is missing.
    """
    if name not in weights:
        some = ", ".join(list(weights)[:3]) or "nothing"
        raise MapetError(f'These are not the weights of {what}: they lack "{name}" (they hold {some} …).')
    return weights[name]


def extent(weights: Mapping[str, Tensor], name: str, what: str, axis: int = 0) -> int:
    """The length of one axis of the tensor ``name``; ``what`` as in ``named``.

    Raises:
        MapetError: it is missing, or has fewer axes.
    """
    shape = named(weights, name, what).shape
    if axis >= len(shape):
        raise MapetError(f'These are not the weights of {what}: "{name}" is {tuple(shape)}.')
    return shape[axis]


def count(weights: Mapping[str, Tensor], prefix: str) -> int:
    """How many different components follow ``prefix`` in the names: the number of blocks for "blocks."."""
    return len({name[len(prefix) :].partition(".")[0] for name in weights if name.startswith(prefix)})


def join_qkv_bias(weights: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """BEiT's ``q_bias`` and ``v_bias`` → timm's ``qkv.bias``, with zeros for the keys; other names stay.

    Raises:
        MapetError: a ``v_bias`` is missing.
    """
    ours = {name: tensor for name, tensor in weights.items() if not name.endswith((".q_bias", ".v_bias"))}
    for name in [name for name in weights if name.endswith(".q_bias")]:
        start, query = name.removesuffix("q_bias"), weights[name]
        value = named(weights, f"{start}v_bias", what)
        ours[f"{start}qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    return ours


def fill(network: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Load ``weights`` into ``network``, whose names and shapes they must match exactly.

    Raises:
        MapetError: names the first tensor that is missing, of another shape, not finite, or unknown.
    """
    state = network.state_dict()
    for name, tensor in state.items():
        found = tuple(named(weights, name, what).shape)
        if found != tuple(tensor.shape):
            raise MapetError(f'These weights do not fit {what}: "{name}" is {found}, not {tuple(tensor.shape)}.')
        if not weights[name].isfinite().all():
            raise MapetError(f'The weights of {what} are damaged: "{name}" holds NaN or Inf. Give others.')
    for name in weights:
        if name not in state:
            raise MapetError(f'These are not the weights of {what}: "{name}" is unknown.')
    network.load_state_dict(dict(weights))


def _content(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(ALLOWED):
        return torch.load(path, map_location="cpu", weights_only=True)


def _kind(path: Path, error: Exception) -> str:
    """What a file that does not hold a state dict is, and what to do about it."""
    if found := re.search(r"\bGLOBAL (\S+)", str(error)):
        converted = str(path.with_name(f"{path.stem}-weights.pth"))
        return (
            f"a pickle of more than tensors ({found[1]}), and loading it could run any code. If you trust it, "
            f"convert it where Python can import {found[1].partition('.')[0]}: "
            f"content = torch.load({str(path)!r}, weights_only=False); torch.save(STATE, {converted!r}), where STATE "
            "is content.state_dict() of a module, or the part of a dict that holds weights, such as content['model']."
        )
    with path.open("rb") as file:
        start = file.read(4)
    if not start:
        kind = "empty"
    elif start.startswith((b"PK", b"\x80")):
        kind = "a damaged file, a TorchScript archive, or a pickle of more than tensors"
    else:
        kind = f"a damaged file, or one of another kind (it starts with {start.decode('latin-1')!a})"
    return f"{kind}: give {WANTED}."
