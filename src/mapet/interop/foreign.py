"""What every loader of foreign weights needs: sizes read off the tensors, and one line where they do not fit."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from mapet.errors import MapetError
from mapet.method.encoder import Encoder

Size = int | tuple[int, int]


def dimensions(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the shapes tell of an encoder, as its arguments; ``weights`` by our names."""
    for name in ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight"):
        expect(weights, name, "a vision transformer")
    width, channels = weights["patch_embed.proj.weight"].shape[:2]
    return {
        "in_chans": channels,
        "embed_dim": width,
        "depth": depth(weights, "blocks"),
        "mlp_ratio": len(weights["blocks.0.mlp.fc1.weight"]) / width,
        "init_values": 0.1 if "blocks.0.ls1.gamma" in weights else None,
        "global_pool": "avg" if "fc_norm.weight" in weights else "token",
    }


def depth(weights: Mapping[str, Tensor], stack: str) -> int:
    """How many blocks are numbered under ``stack``."""
    start = f"{stack}."
    numbers = (int(name.removeprefix(start).split(".")[0]) for name in weights if name.startswith(start))
    return 1 + max(numbers, default=-1)


def part(weights: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    """The weights whose names begin with ``start``, which is cut off."""
    return {name.removeprefix(start): tensor for name, tensor in weights.items() if name.startswith(start)}


@contextmanager
def fitting() -> Iterator[None]:
    """Settings that make no model with these weights are told as one line.

    Raises:
        MapetError: for the ``ValueError`` of a module under construction.
    """
    try:
        yield
    except ValueError as error:
        raise MapetError(f"These settings do not fit the weights: {error}.") from error


def hidden(encoder: Encoder, context: int) -> int:
    """How many patches a context hides.

    Raises:
        MapetError: a context that leaves nothing to predict.
    """
    if not 1 <= context <= encoder.length:
        raise MapetError(f"A context of {context} must lie in 1 … {encoder.length}, CLS included.")
    return 1 + encoder.length - context


def expect(weights: Mapping[str, Tensor], name: str, what: str) -> None:
    """Refuse weights without the tensor ``name``: they are not ``what`` they should be."""
    if name not in weights:
        some = ", ".join(list(weights)[:3]) or "nothing"
        raise MapetError(f'This is not {what}: it lacks "{name}" (it holds {some} …).')


def fill(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load all weights by name, none missing and none left over."""
    try:
        model.load_state_dict(dict(weights))
    except RuntimeError as error:
        reasons = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise MapetError(f"The checkpoint does not fit a {type(model).__name__}: {reasons}") from error
