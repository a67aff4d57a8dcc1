"""A content hash of named tensors: it finds any changed name, type, shape or byte."""

import json
from collections.abc import Callable, Iterable
from hashlib import blake2b

import torch
from torch import Tensor

KEY = "fingerprint"  # in the metadata of safetensors files


def fingerprint(names: Iterable[str], tensor: Callable[[str], Tensor], *context: object) -> str:
    """The hash of the tensors, one read at a time, and of what belongs to them.

    Args:
        names: of all tensors, in any sequence.
        tensor: gives the tensor of a name.
        context: further values, as the completed steps.
    """
    found = blake2b(json.dumps(context).encode(), digest_size=16)
    for name in sorted(names):
        content = tensor(name).detach().cpu().contiguous()
        found.update(json.dumps([name, str(content.dtype), list(content.shape)]).encode())
        found.update(content.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
