"""What every loader of a published transformer needs: sizes read off its tensors, and names put where ours are."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from mapet.method.encoder import Encoder
from mapet.utils.errors import MapetError
from mapet.utils.weights import count, extent, named

Size = int | tuple[int, int]
VIT = "a vision transformer"


def dimensions(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the shapes tell of an encoder, as its arguments; ``weights`` by our names."""
    named(weights, "pos_embed", VIT)
    width, channels = (extent(weights, "patch_embed.proj.weight", VIT, axis) for axis in (0, 1))
    return {
        "in_chans": channels,
        "embed_dim": width,
        "depth": count(weights, "blocks."),
        "mlp_ratio": extent(weights, "blocks.0.mlp.fc1.weight", VIT) / width,
        "init_values": 0.1 if "blocks.0.ls1.gamma" in weights else None,
        "global_pool": "avg" if "fc_norm.weight" in weights else "token",
    }


def part(weights: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    """The weights whose names begin with ``start``, which is cut off."""
    return {name.removeprefix(start): tensor for name, tensor in weights.items() if name.startswith(start)}


def beside(weights: Mapping[str, Tensor], *own: str) -> dict[str, Tensor]:
    """All weights but those whose names begin with one of ``own`` put under ``encoder.``."""
    return {name if name.startswith(own) else f"encoder.{name}": tensor for name, tensor in weights.items()}


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
