"""Helpers that read model sizes from published state dicts and rename their tensors to this package's names."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mapet.method.encoder import Encoder
from mapet.utils.errors import MapetError, reason
from mapet.utils.weights import count, extent, named

Size = int | tuple[int, int]
VIT = "a vision transformer"


def encoder_settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of ``Encoder`` that the tensors' shapes determine; ``weights`` must have its names.

    Raises:
        MapetError: a tensor is missing or has too few axes.
    """
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


def default_heads(width: int) -> int:
    """Return the number of attention heads of the published sizes, 64 channels each; shapes do not determine it."""
    return max(1, width // 64)


def strip_prefix(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the weights whose names start with ``prefix``, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def add_encoder_prefix(weights: Mapping[str, Tensor], *others: str) -> dict[str, Tensor]:
    """Prepend ``encoder.`` to all names except those that start with one of ``others``."""
    return {name if name.startswith(others) else f"encoder.{name}": tensor for name, tensor in weights.items()}


def join_qkv(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join separate attention parameters into timm's ``attn.qkv``: query, key and value rows, in this sequence.

    MaPeT publishes ``attn.q`` and ``attn.kv``. BEiT and CAE publish ``attn.qkv.weight`` with ``attn.q_bias`` and
    ``attn.v_bias``: keys have no bias, as it would not change the softmax; theirs becomes 0.

    Raises:
        MapetError: the partner of a tensor is missing.
    """
    joined = dict(weights)
    for name, query in weights.items():
        if ".attn.q." in name:
            kv_name = name.replace(".attn.q.", ".attn.kv.")
            key_value = named(weights, kv_name, "attention with q and kv")
            del joined[name], joined[kv_name]
            joined[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat([query, key_value])
        elif name.endswith(".attn.q_bias"):
            v_name = f"{name.removesuffix('q_bias')}v_bias"
            value = named(weights, v_name, "attention with a bias for queries and values")
            del joined[name], joined[v_name]
            joined[f"{name.removesuffix('q_bias')}qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    return joined


@contextmanager
def settings_errors() -> Iterator[None]:
    """Turn a ``ValueError`` of a module's constructor into a ``MapetError``.

    Raises:
        MapetError: the settings do not match the weights.
    """
    try:
        yield
    except ValueError as error:
        raise MapetError(f"These settings do not fit the weights: {reason(error)}.") from error


def num_masked(encoder: Encoder, context: int) -> int:
    """Return the number of masked patches for ``context`` given positions, CLS included.

    Raises:
        MapetError: ``context`` is not in 1 … L.
    """
    if not 1 <= context <= encoder.length:
        raise MapetError(f"A context of {context} must lie in 1 … {encoder.length}, CLS included.")
    return 1 + encoder.length - context
